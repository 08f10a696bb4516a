"""Scripts around zarrbuf that keep the names and flags people know from RLinf."""

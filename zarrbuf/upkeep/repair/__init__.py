"""A damaged buffer or folder made usable again; nothing is thrown away.

Owns what can be saved of a log in which commits are damaged or missing, and of a folder
of RLinf's whose index is.

Begin with `repair`, the way in; `log_plan` says how a log is set right.
"""

"""What zarrbuf costs beside other ways to keep a replay buffer."""

"""Replay buffer scripts, named as in RLinf's `toolkits/replay_buffer`."""

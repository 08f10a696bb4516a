"""`TrajectoryReplayBuffer`: what a training run holds.

Owns the face that stands in for RLinf's class, what the buffer holds at any time, and
the checkpoints of a run. Has no algorithm of its own: it must not know chunks.

Begin with `buffer`; `live_set` is what it holds.
"""

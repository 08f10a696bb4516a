"""Where trajectories are kept and listed: one contract over every kind of place.

Owns a buffer on a storage, one in memory, a folder of RLinf's, and the queue in front
of them; which of them lies at a path; places where a new buffer is made. Must not know
batches.

Begin with `contract`; `opening` says which store a path is.
"""

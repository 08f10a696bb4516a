"""A buffer looked after.

Owns what keeps a buffer in order without changing a trajectory: taking rows off the
list, deleting what nothing names, reading everything to find damage, telling its
history. Must not know batches.

Begin with `verify`, which reads everything; `repair` makes usable what it found.
"""

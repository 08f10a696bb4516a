"""RLinf's files, read and written.

Owns the two JSON files of its folders, the `.pt` and `.pkl` files beside them, and the
care that nothing in such a file ever runs. Must not know buffers.

Begin with `index`; `files` turns one file into a trajectory.
"""

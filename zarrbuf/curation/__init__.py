"""New buffers out of old ones.

Owns merge, split, conversion between formats, and archives written anew: everything is
checked first, and the destination is whole or not there. Must not know the buffer that
a training run holds.

Begin with the docstrings of `merge`, `split` and `convert`.
"""

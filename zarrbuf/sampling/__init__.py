"""From draws to a batch.

Owns the way from random numbers to rows of tensors: which sample lies where, which
chunks hold it, what is kept decoded or open, and the memory of batches. Must not know
how trajectories are added or saved.

Begin with `sampler`, which calls the others in turn; `index_map` is the arithmetic.
"""

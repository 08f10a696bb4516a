"""One trajectory of tensors <-> its archive.

Owns the fields that RLinf's trajectories have, which of them are stored and how, and
what is refused by the name of its field. Must not know where archives are kept or
listed.

Begin with `trajectory`; `encoding` is the way in, `archived` the way out.
"""

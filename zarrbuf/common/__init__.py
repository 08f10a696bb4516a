"""What knows nothing of trajectories: threads, caches, checks of arguments, names.

Owns tools that any program could use. Must not know arrays, storages or formats; it
imports from the standard library, and from `errors`.

Begin with `thread_pool`, which every decoded batch goes through.
"""

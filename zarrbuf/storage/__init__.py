"""Objects by name, on a disk or in an object store.

Owns what it takes to read bytes, to create a name exactly once, to list and to delete;
the retries, deadlines and caches of stores; files as memory. Must not know what the
bytes mean: no archive, no manifest.

Begin with `contract`: `Storage` is what `local` and `object_store` keep.
"""

"""Arrays <-> one Zarr v3 group in a zip, the file that holds a trajectory.

Owns every byte of it: dtypes, chunks, shards, checksums, metadata, the zip around them,
and the compiled loops that decode many chunks at once. Must not know torch, nor what a
field is for.

Begin with `spec`, the rules of docs/format.md; then `group`, which puts them together.
"""

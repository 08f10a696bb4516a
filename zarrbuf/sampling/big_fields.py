"""Big fields of a batch: which chunks of which trajectories go to which rows.

Pure. A row of a big field is a chunk of its own. Reads and decodes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zarrbuf.archive.chunks import ChunkReads
from zarrbuf.archive.spec import AnyArray, BatchField, step_rows
from zarrbuf.errors import FormatError
from zarrbuf.sampling.index_map import IntArray, ReadPlan
from zarrbuf.trajectory.archived import TrajectoryArchive


def plan_chunks(
    archives: Sequence[TrajectoryArchive],
    field: BatchField,
    plan: ReadPlan,
    out: AnyArray,
) -> ChunkReads:
    """Tell which chunks of a big field go to which rows of the batch.

    Raises:
        FormatError: if samples of a trajectory are of another size than a row.
    """
    # The same field may be an array of its own here and a stage of one there.
    own = [archive.batch_field(field.name) for archive in archives]
    shards = [a.shard(one.field) for a, one in zip(archives, own, strict=True)]
    chunks = _chunk_numbers(archives, own, plan)
    reads = ChunkReads(shards, plan.counts, chunks, out, plan.rows)
    row_bytes = reads.row_bytes
    for archive, shard in zip(archives, shards, strict=True):
        if shard.num_bytes != row_bytes:
            raise FormatError(
                f"{archive.name}: field {field.name!r} has {shard.num_bytes} bytes a "
                f"sample; {row_bytes} are expected"
            )
    return reads


def _chunk_numbers(
    archives: Sequence[TrajectoryArchive],
    fields: Sequence[BatchField],
    plan: ReadPlan,
) -> IntArray:
    """Return the chunk of each sample of a big field.

    Args:
        archives: one a group.
        fields: the field as each of them keeps it.
        plan: the samples.
    """
    pairs = list(zip(archives, fields, strict=True))
    num_rows = [archive.num_rows(field.field) for archive, field in pairs]
    num_envs = [archive.header.num_envs for archive in archives]
    chunks = plan.flat
    if num_rows != [archive.header.num_steps for archive in archives]:
        parts = np.split(plan.flat, np.cumsum(plan.counts)[:-1])
        chunks = np.concatenate(
            [
                _skip_extra_rows(archive, field, part)
                for (archive, field), part in zip(pairs, parts, strict=True)
            ]
        )
    stages = np.array([field.stage or 0 for field in fields])
    first = stages * np.array(num_rows) * np.array(num_envs)
    numbers: IntArray = chunks + plan.for_samples(first)
    return numbers


def _skip_extra_rows(
    archive: TrajectoryArchive, field: BatchField, flat: IntArray
) -> IntArray:
    """Return where samples are in an array with extra rows on its time axis."""
    header = archive.header
    num_rows = archive.num_rows(field.field)
    step, env = np.divmod(flat, header.num_envs)
    kept = step_rows(field.spec.rows, num_rows, header.num_steps)
    found: IntArray = kept[step] * header.num_envs + env
    return found

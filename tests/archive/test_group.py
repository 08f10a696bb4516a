"""Archives: Zarr reads what we write; any damaged byte is found, by name."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.trajectories import (
    UUID,
    contents_of,
    make_trajectory,
    rezip,
    small_archive,
    stored,
    trajectories,
)

from zarrbuf.archive.spec import AnyArray
from zarrbuf.archive.zarr_json import CODECS, CodecName
from zarrbuf.archive.zip_file import parse_zip
from zarrbuf.common.thread_pool import Workers
from zarrbuf.errors import FormatError
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import encode_trajectory
from zarrbuf.trajectory.trajectory import Trajectory

NAME = "folder/some.zarr.zip"
WORKERS = (Workers(1), Workers(2), Workers(3))


def read_all(data: bytes) -> dict[str, AnyArray]:
    archive = TrajectoryArchive(data, name=NAME)
    archive.check()
    return {field: archive.read_array(field) for field in archive.arrays}


def assert_refused(data: bytes, rule: str) -> None:
    with pytest.raises(FormatError, match=rule) as caught:
        TrajectoryArchive(data, name=NAME).check()
    assert str(caught.value).startswith(f"{NAME}: ")


def expected_arrays(trajectory: Trajectory) -> dict[str, AnyArray]:
    """Return what must lie in the archive of `make_trajectory`'s result."""
    arrays = {}
    for name in ("actions", "rewards", "dones", "prev_values", "versions"):
        arrays[name] = stored(getattr(trajectory, name))
    for key in ("main_images", "states"):
        pair = (trajectory.curr_obs[key], trajectory.next_obs[key])
        arrays[f"obs/{key}"] = np.stack([stored(part) for part in pair])
    forward = trajectory.forward_inputs
    arrays["forward_inputs/hidden"] = stored(forward["hidden"])
    arrays["forward_inputs/nested/mask"] = stored(forward["nested"]["mask"])
    arrays["forward_inputs/temperature"] = stored(forward["temperature"])
    return arrays


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_zarr_reads_a_real_trajectory(codec: CodecName, tmp_path: Path) -> None:
    trajectory = make_trajectory(8, 2, extra_epochs=2)
    encoded = encode_trajectory(trajectory, uuid=UUID, codec=codec)
    path = tmp_path / "x.zarr.zip"
    path.write_bytes(encoded.data)
    expected = expected_arrays(trajectory)
    assert set(expected) < set(encoded.header.schema)
    with zarr.storage.ZipStore(path, mode="r") as store:
        group: Any = zarr.open_group(store, mode="r")
        assert group.attrs["zarrbuf"]["T"] == 8
        assert group.attrs["zarrbuf"]["B"] == 2
        for field, values in expected.items():
            found = np.asarray(group[field][...])
            assert found.dtype == values.dtype, field
            assert found.tobytes() == values.tobytes(), field
            url = f"file://{path}|zip:{field}/"
            spec = {"driver": "zarr3", "kvstore": url}
            other = tensorstore.open(spec).result().read().result()
            assert other.tobytes() == values.tobytes(), field
        names = group["dones"].metadata.dimension_names
        assert names[:2] == ("time_and_starts", "env")
        assert group["obs/main_images"].metadata.dimension_names[0] == "stage"
        assert group["forward_inputs/hidden"].attrs["torch_dtype"] == "bfloat16"


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(trajectories(), st.sampled_from(sorted(CODECS)))
def test_zarr_tensorstore_and_we_read_the_same(
    tmp_path: Path, trajectory: Trajectory, codec: CodecName
) -> None:
    encoded = encode_trajectory(trajectory, uuid=UUID, codec=codec)
    path = tmp_path / "x.zarr.zip"
    path.write_bytes(encoded.data)
    ours = read_all(encoded.data)
    assert set(ours) == set(encoded.header.schema)
    base = {"driver": "file", "path": str(path)}
    with zarr.storage.ZipStore(path, mode="r") as store:
        group: Any = zarr.open_group(store, mode="r")
        for field, values in ours.items():
            found = np.asarray(group[field][...])
            assert (found.dtype, found.shape) == (values.dtype, values.shape)
            assert found.tobytes() == values.tobytes()
            kvstore = {"driver": "zip", "base": base, "path": f"{field}/"}
            spec = {"driver": "zarr3", "kvstore": kvstore}
            other = tensorstore.open(spec).result().read().result()
            assert (other.dtype, other.shape) == (values.dtype, values.shape)
            assert other.tobytes() == values.tobytes()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(trajectories(), st.sampled_from(sorted(CODECS)))
def test_equal_trajectories_give_equal_bytes(
    trajectory: Trajectory, codec: CodecName
) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(item) for key, item in reversed(value.items())}
        return value.clone() if isinstance(value, torch.Tensor) else value

    copy = Trajectory(**{name: turned(v) for name, v in vars(trajectory).items()})
    one = encode_trajectory(trajectory, uuid=UUID, codec=codec)
    for workers in WORKERS:
        again = encode_trajectory(copy, uuid=UUID, codec=codec, workers=workers)
        assert again.data == one.data
        assert again.crc == one.crc


def test_threads_change_no_byte_of_a_large_trajectory() -> None:
    trajectory = make_trajectory(40, 4, image_size=64)
    one, two, three = (
        encode_trajectory(trajectory, uuid=UUID, codec="lz4", workers=workers).data
        for workers in WORKERS
    )
    assert one == two == three


def test_members_lie_in_the_order_of_the_format() -> None:
    with zipfile.ZipFile(io.BytesIO(small_archive())) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert names == [
        "obs/image/c/0/0/0/0",
        "curr_obs/time/c",
        "dones/c/0/0",
        "next_obs/time/c",
        "rewards/c/0/0",
        "curr_obs/time/zarr.json",
        "curr_obs/zarr.json",
        "dones/zarr.json",
        "next_obs/time/zarr.json",
        "next_obs/zarr.json",
        "obs/image/zarr.json",
        "obs/none/zarr.json",
        "obs/zarr.json",
        "rewards/zarr.json",
        "zarr.json",
    ]


def test_check_counts_the_chunks_that_are_stored() -> None:
    archive = TrajectoryArchive(small_archive(), name=NAME)
    images = archive.chunk_ranges("obs/image")
    assert len(images) == 2 * 3 * 2
    assert archive.check() == len({*map(tuple, images.tolist())}) + 1 + 1
    assert archive.num_rows("dones") == 4
    assert archive.num_rows("obs/image") == 3


# Damage: every byte counts.


def test_a_flip_of_any_byte_is_found() -> None:
    data = small_archive()
    read_all(data)
    rng = np.random.default_rng(0)
    masks = rng.integers(1, 256, len(data))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= int(masks[position])
        with pytest.raises(FormatError) as caught:
            TrajectoryArchive(bytes(damaged), name=NAME).check()
        assert str(caught.value).startswith(NAME)


def test_a_flip_of_any_byte_is_found_by_whoever_reads_it() -> None:
    """Without the zip's CRC: reading all arrays notices damage of what they hold."""
    data = small_archive()
    archive = TrajectoryArchive(data, name=NAME)
    members = parse_zip(memoryview(data), name=NAME)
    for field, info in archive.arrays.items():
        if info.is_empty:
            continue
        member = members[info.shard_name]
        for position in range(member.start, member.stop):
            damaged = bytearray(data)
            damaged[position] ^= 0x10
            opened = TrajectoryArchive(bytes(damaged), name=NAME)
            with pytest.raises(FormatError, match=f"{NAME}: field '{field}'"):
                opened.read_array(field)


def test_a_file_cut_short_anywhere_is_refused() -> None:
    data = small_archive()
    for length in range(len(data)):
        with pytest.raises(FormatError, match=NAME):
            TrajectoryArchive(data[:length], name=NAME)


def test_chunks_that_are_swapped_are_found() -> None:
    """The index is part of the member, so the zip's CRC-32 covers it."""
    contents = contents_of(small_archive())
    shard = contents["obs/image/c/0/0/0/0"]
    other = shard[::-1]
    data = rezip(contents).replace(shard, other)
    assert_refused(data, "obs/image")


def test_bytes_of_a_shard_that_belong_to_no_chunk_are_found() -> None:
    contents = contents_of(small_archive())
    shard = contents["obs/image/c/0/0/0/0"]
    index = 16 * 12 + 4
    contents["obs/image/c/0/0/0/0"] = shard[:-index] + b"hidden" + shard[-index:]
    data = rezip(contents)
    archive = TrajectoryArchive(data, name=NAME)
    assert (
        archive.read_array("obs/image") == read_all(small_archive())["obs/image"]
    ).all()
    assert_refused(data, "overlap or leave a gap")

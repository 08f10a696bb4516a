"""Values that are no tensors: as JSON, in archives and in RLinf's files."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.trajectories import assert_same_trajectory, assert_same_value

from zarrbuf import Trajectory, TrajectoryReplayBuffer, convert
from zarrbuf.errors import FormatError, InvalidInputError
from zarrbuf.trajectory import encoding
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.comparing import compare_trajectories
from zarrbuf.trajectory.encoding import encode_trajectory
from zarrbuf.trajectory.plain_values import NUMPY_SCALARS, from_json, to_json
from zarrbuf.trajectory.trajectory import decode_trajectory

ODD: dict[str, Any] = {
    "nan": math.nan,
    "lists": [math.inf, -math.inf, -0.0, b"", b"\x00\xff"],
    "tuple": (1, ("a", [None, ()])),
    "float32": np.float32(math.nan),
    "bool": [np.True_, np.False_],
    "whole": np.uint64(2**64 - 1),
    "complex": np.complex128(complex(1, -math.inf)),
    "$float": "nan",
    "$$": {"$bytes": b"x", "b": 1},
    "$tuple": {"$tuple": ()},
    "inner": {"$numpy": {"deep": (np.int8(-1),)}, "$": {}},
    "text": "$float",
}


def make(**values: Any) -> Trajectory:
    rewards = torch.arange(6.0).reshape(3, 2)
    return Trajectory(
        rewards=rewards, curr_obs={"states": rewards[..., None]}, **values
    )


def round_trip(trajectory: Trajectory) -> Trajectory:
    encoded = encode_trajectory(trajectory, uuid="0" * 32, codec="lz4")
    return decode_trajectory(TrajectoryArchive(encoded.data, name="t"))


numbers = st.sampled_from(NUMPY_SCALARS).flatmap(
    lambda kind: st.binary(
        min_size=np.dtype(kind).itemsize, max_size=np.dtype(kind).itemsize
    ).map(
        lambda raw: (
            kind(raw[0] & 1) if kind is np.bool_ else np.frombuffer(raw, kind)[0]
        )
    )
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.just(math.nan)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.binary(max_size=5)
    | numbers,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.sampled_from(["$", "$$", "$float", "$tuple", "$numpy", "$bytes"])
            | st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(values)
def test_any_value_comes_back_as_it_was(value: Any) -> None:
    text = json.dumps(to_json(value, "x"), allow_nan=False)
    assert_same_value(from_json(json.loads(text)), value, "x")


def test_plain_json_stays_as_it_is() -> None:
    plain = {"a": [1, 2.5, "x", None, True, {"b": []}]}
    assert to_json(plain, "x") == plain
    assert to_json({"$float": math.nan}, "x") == {"$$float": {"$float": "nan"}}
    assert to_json((np.float32(1.5),), "x") == {
        "$tuple": [{"$numpy": ["<f4", "AADAPw=="]}]
    }


def test_an_archive_gives_them_back_and_batches_leave_them_out() -> None:
    trajectory = make(forward_inputs=ODD)
    trajectory.curr_obs["odd"] = ODD
    assert_same_trajectory(round_trip(trajectory), trajectory)
    same = compare_trajectories(trajectory, round_trip(trajectory))
    assert set(same.values()) == {"bit-exact"}
    changed = make(forward_inputs={**ODD, "float32": np.float32(1)})
    found = compare_trajectories(make(forward_inputs=ODD), changed)
    assert found["forward_inputs/float32"] == "changed"
    buffer = TrajectoryReplayBuffer(seed=1)
    buffer.add_trajectories([trajectory])
    batch = buffer.sample(4)
    assert set(batch) == {"rewards", "curr_obs"}
    assert set(batch["curr_obs"]) == {"states"}


@pytest.mark.parametrize("form", ["zarr", "pt", "pkl"])
def test_every_format_keeps_them(form: str, tmp_path: Path) -> None:
    trajectory = make(forward_inputs=ODD)
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=tmp_path / "a", trajectory_format=form
    ) as buffer:
        buffer.add_trajectories([trajectory])
    for other in ("zarr", "pt", "pkl"):
        convert(tmp_path / "a", tmp_path / other, to=other, verify=True)
        loaded = TrajectoryReplayBuffer()
        loaded.load_checkpoint(tmp_path / other)
        assert_same_trajectory(loaded.load_trajectory(0), trajectory)
    if form == "pkl":
        (file,) = (tmp_path / "a").glob("*.pkl")
        assert_same_value(
            pickle.loads(file.read_bytes())["forward_inputs"], ODD, "forward_inputs"
        )


def test_a_key_that_is_no_text_in_a_tuple_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"^x\[1\] is \{1: 2\} \(dict\)"):
        to_json((0, {1: 2}), "x")


def test_what_holds_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append((circle,))
    with pytest.raises(InvalidInputError, match="x is nested too deep or holds itself"):
        to_json(circle, "x")


FORGED = [
    {"$float": "NaN"},
    {"$float": 1.0},
    {"$float": []},
    {"$bytes": "*"},
    {"$bytes": "é"},
    {"$bytes": None},
    {"$tuple": {}},
    {"$numpy": "<f4"},
    {"$numpy": ["<f4"]},
    {"$numpy": ["<f4", "AAAA"]},
    {"$numpy": [">f4", "AADAPw=="]},
    {"$numpy": ["|O8", "AAAAAAAAAAA="]},
    {"$numpy": [["<f4"], "AADAPw=="]},
    {"$other": 1},
    {"$": 1},
    {"$tuple": [], "a": 1},
]


@pytest.mark.parametrize("forged", FORGED, ids=str)
def test_other_marks_are_damage(forged: Any) -> None:
    for value in (forged, [forged], {"a": {"b": forged}}):
        with pytest.raises(ValueError, match=r"no tensor|no base64|plain values"):
            from_json(value)


def test_a_forged_archive_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "to_json", lambda value, name: value)
    trajectory = make(forward_inputs={"a": [{"$float": "x"}]})
    data = encode_trajectory(trajectory, uuid="0" * 32, codec="none").data
    with pytest.raises(FormatError, match="here: forward_inputs: a value that is no"):
        decode_trajectory(TrajectoryArchive(data, name="here"))

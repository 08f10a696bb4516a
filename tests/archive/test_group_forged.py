"""Archives whose parts are valid each, but do not agree: refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.trajectories import UUID, contents_of, rezip, small_archive

from zarrbuf.archive.group import Archive, FieldArray, encode_archive
from zarrbuf.archive.spec import AnyArray
from zarrbuf.archive.zarr_json import encode_json
from zarrbuf.errors import FormatError, UnsupportedVersionError
from zarrbuf.trajectory.archived import TrajectoryArchive

NAME = "folder/some.zarr.zip"


def changed_root(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Return the small archive with its root attributes changed, else valid."""
    contents = contents_of(small_archive())
    root = json.loads(contents["zarr.json"])
    change(root["attributes"])
    contents["zarr.json"] = encode_json(root)
    return rezip(contents)


def assert_refused(data: bytes, rule: str) -> None:
    with pytest.raises(FormatError, match=rule) as caught:
        TrajectoryArchive(data, name=NAME).check()
    assert str(caught.value).startswith(f"{NAME}: ")


# Members and metadata agree.


@pytest.mark.parametrize("name", sorted(contents_of(small_archive())))
def test_a_member_that_is_missing_is_named(name: str) -> None:
    contents = contents_of(small_archive())
    del contents[name]
    rule = "is missing|are not the parents|described by nothing|fields and arrays"
    assert_refused(rezip(contents), rule)


@pytest.mark.parametrize(
    "name",
    [
        "extra",
        "rewards/c/0/1",
        "rewards/c/1/0",
        "obs/none/c/0/0/0/0",
        "../evil",
        "/rewards/zarr.json",
        "rewards//zarr.json",
        "rewards/",
        "zarr.json/zarr.json",
        ".zgroup",
    ],
)
def test_a_member_that_nothing_describes_is_refused(name: str) -> None:
    contents = contents_of(small_archive())
    for data in (b"", b"x", contents["rewards/zarr.json"]):
        extended = {name: data, **contents}
        rule = "described by nothing|JSON|no name|parents|is missing"
        assert_refused(rezip(extended), rule)


def test_groups_are_the_parents_of_arrays_and_plain() -> None:
    contents = contents_of(small_archive())
    group = contents["obs/zarr.json"]
    for name in ("empty/zarr.json", "rewards/c/zarr.json"):
        assert_refused(rezip({name: group, **contents}), "are not the parents")
    with_attributes = encode_json({**json.loads(group), "attributes": {"x": 1}})
    assert_refused(
        rezip({**contents, "obs/zarr.json": with_attributes}), "carry attributes"
    )


def test_the_root_is_a_group() -> None:
    contents = contents_of(small_archive())
    contents["zarr.json"] = contents["rewards/zarr.json"]
    assert_refused(rezip(contents), "root zarr.json is missing")


def test_metadata_of_another_array_are_refused() -> None:
    contents = contents_of(small_archive())
    contents["rewards/zarr.json"] = contents["dones/zarr.json"]
    assert_refused(rezip(contents), "array 'rewards' is bool")


# Attributes and arrays agree.


def _put(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda attributes: attributes["zarrbuf"].__setitem__(key, value)


def _field(name: str, key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda attributes: attributes["zarrbuf"]["fields"][name].__setitem__(
        key, value
    )


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no zarrbuf": (lambda a: a.pop("zarrbuf"), "no attribute 'zarrbuf'"),
    "zarrbuf a list": (lambda a: a.update(zarrbuf=[]), "no attribute 'zarrbuf'"),
    "another attribute": (lambda a: a.update(more=1), "not those of a trajectory"),
    "another key": (_put("more", 1), "not those of a trajectory"),
    "spec 0": (_put("spec", 0), "spec is 0"),
    "spec a bool": (_put("spec", True), "spec is True"),
    "spec a string": (_put("spec", "1"), "spec is '1'"),
    "no spec": (lambda a: a["zarrbuf"].pop("spec"), "spec is None"),
    "uuid": (_put("uuid", "x" * 32), "not those of a trajectory"),
    "uuid in capitals": (_put("uuid", UUID.upper()), "not those of a trajectory"),
    "uuid a number": (_put("uuid", 1), "zarrbuf.uuid is 1"),
    "T too large": (_put("T", 4), "which is not what its field says"),
    "T too small": (_put("T", 2), "which is not what its field says"),
    "T zero": (_put("T", 0), "not those of a trajectory"),
    "T a float": (_put("T", 3.0), "zarrbuf.T is 3.0"),
    "T a bool": (_put("T", True), "zarrbuf.T is True"),
    "B": (_put("B", 3), "which is not what its field says"),
    "B negative": (_put("B", -2), "not those of a trajectory"),
    "max_episode_length": (_put("max_episode_length", 1.5), "max_episode_length is"),
    "model_weights_id": (_put("model_weights_id", 7), "model_weights_id is 7"),
    "fields a list": (_put("fields", []), "zarrbuf.fields is"),
    "no fields": (_put("fields", {}), "fields and arrays differ"),
    "dtype": (_field("rewards", "dtype", "int32"), "not what its field says"),
    "torch dtype": (_field("curr_obs/time", "dtype", "uint16"), "not what its field"),
    "sample shape": (_field("obs/image", "shape", [4095]), "not what its field says"),
    "whole": (_field("obs/image", "rows", "whole"), "has shape"),
    "rows": (_field("dones", "rows", "end"), "not what its field says"),
    "rows without extra": (_field("dones", "rows", "step"), "not what its field says"),
    "step of a number": (_field("curr_obs/time", "rows", "step"), "not what its field"),
    "non_tensor a list": (lambda a: a.update(non_tensor=[]), "not those of a traj"),
    "non_tensor elsewhere": (
        lambda a: a.update(non_tensor={"rewards": {}}),
        "not those of a trajectory",
    ),
    "non_tensor no tree": (
        lambda a: a.update(non_tensor={"curr_obs": "x"}),
        "not those of a trajectory",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_attributes_that_do_not_fit_are_refused(change: str) -> None:
    assert_refused(changed_root(CHANGES[change][0]), CHANGES[change][1])


def test_a_root_that_is_only_written_anew_is_read() -> None:
    assert changed_root(lambda attributes: None) == small_archive()


def test_a_newer_spec_is_refused_by_name() -> None:
    data = changed_root(_put("spec", 2))
    with pytest.raises(UnsupportedVersionError, match=f"{NAME}: spec 2"):
        TrajectoryArchive(data, name=NAME)


def forge(
    fields: dict[str, AnyArray], rows: str = "step", time_name: str = "time"
) -> bytes:
    """Return an archive whose parts agree, of fields that no writer would give."""
    specs = {
        name: {"dtype": array.dtype.name, "rows": rows, "shape": list(array.shape[2:])}
        for name, array in fields.items()
    }
    attributes = {
        "zarrbuf": {
            "spec": 1,
            "uuid": UUID,
            "T": 2,
            "B": 3,
            "max_episode_length": 0,
            "model_weights_id": "",
            "fields": specs,
        }
    }
    arrays = {
        name: FieldArray((array,), array.dtype.name, time_name)
        for name, array in fields.items()
    }
    return encode_archive(arrays, attributes, codec="lz4")


def test_names_that_no_writer_gives_are_refused() -> None:
    array = np.zeros((2, 3))
    data = forge({"rewards": array, "forward_inputs/A": array})
    assert TrajectoryArchive(data, name=NAME).check() == 2
    for path in (
        "forward_inputs/%41",
        "forward_inputs/..",
        "actions/x",
        "_self",
        "%FF",
    ):
        assert_refused(forge({"rewards": array, path: array}), "no name of a field")


def test_extra_rows_that_do_not_divide_the_steps_are_refused() -> None:
    def with_extra(num_extra: int) -> bytes:
        array = np.zeros((2 + num_extra, 3))
        return forge({"dones": array}, rows="start", time_name="time_and_starts")

    for num_extra in (1, 2):  # nothing wrong with these rows
        assert_refused(with_extra(num_extra), "no field says T and B")
    for num_extra in (3, 4):
        assert_refused(with_extra(num_extra), "not what its field says")


def test_an_archive_without_steps_is_no_trajectory() -> None:
    assert_refused(forge({}), "no field says T and B")
    assert_refused(forge({"dones": np.zeros((2, 3))}, rows="start"), "no field says")


def test_plain_columns_make_an_archive_too() -> None:
    columns = {
        "uuid": FieldArray((np.arange(64, dtype=np.uint8).reshape(4, 16),), "uint8"),
        "size": FieldArray((np.arange(4, dtype=np.int64),), "int64"),
    }
    data = encode_archive(columns, {"rows": 4}, codec="zstd")
    archive = Archive(data, name=NAME)
    assert archive.attributes == {"rows": 4}
    assert archive.check() == 2
    for name, column in columns.items():
        assert archive.read_array(name).tobytes() == column.parts[0].tobytes()
        assert archive.read_array(name).shape == column.shape
    with pytest.raises(FormatError, match="no attribute 'zarrbuf'"):
        TrajectoryArchive(data, name=NAME)

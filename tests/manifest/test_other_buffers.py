"""What a manifest may name: written by us, read from anybody."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.numbered import contents, make
from support.remote import loaded

from zarrbuf import list_buffer, verify
from zarrbuf.errors import (
    FormatError,
    InvalidInputError,
    UntrustedBaseError,
    ZarrbufError,
)
from zarrbuf.manifest.commit_log import create_log, open_log
from zarrbuf.manifest.trust import base_url, check_trusted, place_of, resolve_base
from zarrbuf.storage.requests import ObjectClient
from zarrbuf.storage.resolve import open_storage

UUID = "ab" * 16


@pytest.mark.parametrize(
    ("root", "other", "name"),
    [
        ("/data/all", "/data/rank_0", "../rank_0"),
        ("/data/all", "/data/deep/er/x", "../deep/er/x"),
        ("/data/all", "/data/all/inner", "inner"),
        ("s3://b/x/all", "s3://b/x/rank_0", "../rank_0"),
        ("s3://b/all", "s3://b/x/y", "../x/y"),
        ("s3://b/all", "s3://c/all", "s3://c/all"),
        ("memory://m/a", "memory://m/b", "../b"),
    ],
)
def test_a_base_is_named_relatively_where_it_can(
    root: str, other: str, name: str
) -> None:
    assert base_url(root, other) == name
    assert resolve_base(root, name, where="x").url == other


@pytest.mark.parametrize("other", ["s3://b/x", "memory://b/x", "gs://b/x"])
def test_another_kind_of_store_has_no_name(other: str) -> None:
    with pytest.raises(InvalidInputError, match="another kind of store"):
        base_url("/data/all", other)


PARTS = st.lists(st.sampled_from(["a", "b", "c d", "ü", "x#y?z"]), max_size=4)


@given(PARTS, PARTS, st.sampled_from(["", "s3://bucket", "memory://m"]))
def test_names_lead_back(root: list[str], other: list[str], store: str) -> None:
    here = "/".join([store, *root, "here"])
    there = "/".join([store, *other, "there"])
    name = base_url(here, there)
    assert resolve_base(here, name, where="x") == place_of(there)


HOSTILE = [
    "",
    "..\0",
    "a\nb",
    "\x1b[31m",
    "x" * 5000,
    "file://other/x",
    "http://127.0.0.1/x",
    "https://me:secret@host/x",
    "s3://key:secret@bucket/x",
    "s3://bucket/x?endpoint=http://evil",
    "s3://bucket/../../x",
    "simplecache::s3://bucket/x",
    "zip://x.zip::/data/x",
    "ftp://host/x",
    "javascript://x",
    "s3://",
    "s3:///x",
    "memory://m/%2e%2e/x",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("root", ["/data/all", "s3://bucket/all", "memory://m/all"])
def test_a_hostile_name_is_refused(root: str, name: str) -> None:
    def follow() -> None:
        place = resolve_base(root, name, where="manifest")
        check_trusted(root, place, (), where="manifest")

    with pytest.raises(UntrustedBaseError) as caught:
        follow()
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("root", "name", "is_trusted"),
    [
        ("/data/all", "../rank_0", True),
        ("/data/all", "/data/rank_0", True),
        ("/data/all", "/etc", False),
        ("/data/all", "../../etc", False),
        ("/data/all", "../../../../../../etc", None),
        ("/data/all", "inner", False),
        ("/data/all", "../rank_0/inner", False),
        ("s3://b/x/all", "../../anywhere/else", True),
        ("s3://b/x/all", "../../../other", None),
        ("s3://b/x/all", "s3://b/else", True),
        ("s3://b/x/all", "s3://c/else", False),
        ("s3://b/x/all", "/etc", None),
        ("/data/all", "s3://b/x", None),
        ("http://h/x/all", "../rank_0", True),
        ("http://h/x/all", "../../rank_0", False),
        ("http://h/x/all", "http://g/x/rank_0", False),
    ],
)
def test_what_lies_beside_is_trusted(
    root: str, name: str, is_trusted: bool | None
) -> None:
    if is_trusted is None:
        with pytest.raises(UntrustedBaseError):
            resolve_base(root, name, where="x")
        return
    place = resolve_base(root, name, where="x")
    if not is_trusted:
        with pytest.raises(UntrustedBaseError, match="allow_bases"):
            check_trusted(root, place, (), where="x")
    check_trusted(root, place, [place.url], where="x")
    check_trusted(root, place, [] if is_trusted else [place.url], where="x")


def test_what_is_allowed_is_what_lies_below(tmp_path: Path) -> None:
    place = place_of("/data/runs/a")
    check_trusted("/x/y", place, ["/data/runs"], where="m")
    check_trusted("/x/y", place, ["/"], where="m")
    for other in ("/data/run", "/data/runs/a/b", "/data/runs/ab", "s3://data/runs"):
        with pytest.raises(UntrustedBaseError):
            check_trusted("/x/y", place, [other], where="m")
    with pytest.raises(InvalidInputError, match="a list of paths"):
        open_storage(tmp_path, allow_bases="/data")


def forged(path: Path, *bases: dict[str, Any], base: int = 1) -> str:
    """Write a buffer that names a trajectory of another one, whatever it is."""
    source = make(path / "source", 0, 1)
    snapshot = open_log(open_storage(source)).snapshot
    row = dataclasses.replace(snapshot.rows.row(0), base=base, version=0, ts=0)
    create_log(
        open_storage(path / "x"),
        build=lambda now: [
            now.meta_action(schemas=snapshot.schemas, bases=bases),
            row.to_action(),
        ],
    )
    return str(path / "x")


@pytest.mark.parametrize("name", HOSTILE[1:])
def test_a_hostile_manifest_opens_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: Any, **__: Any) -> Any:
        raise AssertionError("a store was asked")

    path = forged(tmp_path, {"url": name, "uuid": UUID})
    monkeypatch.setattr(ObjectClient, "run", connect)
    assert len(list_buffer(path).rows) == 1  # listing opens no base
    with pytest.raises(UntrustedBaseError):
        loaded(path).sample(1)
    assert not verify(path).is_sound


@pytest.mark.parametrize(
    "bases",
    [
        [{"url": ""}],
        [{"url": "", "uuid": UUID}],
        [{"url": "../source", "uuid": "x"}],
        [{"url": "../source", "uuid": UUID, "key": "secret"}],
        [{"url": 3, "uuid": UUID}],
        ["../source"],
        [],  # a row names the first
    ],
)
def test_a_malformed_base_is_never_committed(tmp_path: Path, bases: Any) -> None:
    with pytest.raises(ZarrbufError, match="base"):
        forged(tmp_path, *bases)
    assert open_log(open_storage(tmp_path / "x")).snapshot.version == 0


def test_bases_are_only_added(tmp_path: Path) -> None:
    uuid = open_log(open_storage(make(tmp_path / "source", 9, 1))).uuid
    path = forged(tmp_path, {"url": "../source", "uuid": uuid})
    log = open_log(open_storage(path))
    for bases in ([], [{"url": "../other", "uuid": uuid}]):
        with pytest.raises(InvalidInputError, match="bases are only added"):
            log.commit(lambda now, b=bases: [now.meta_action(bases=b)], op="x")  # type: ignore[misc]
    assert contents(path) == [(0, 9)]


def test_a_base_of_a_base_is_not_followed(tmp_path: Path) -> None:
    uuid = open_log(open_storage(make(tmp_path / "source", 9, 1))).uuid
    middle = forged(tmp_path, {"url": "../source", "uuid": uuid})
    snapshot = open_log(open_storage(middle)).snapshot
    row = dataclasses.replace(snapshot.rows.row(0), base=1, version=0, ts=0)
    base = {"url": "../x", "uuid": open_log(open_storage(middle)).uuid}
    create_log(
        open_storage(tmp_path / "outer"),
        build=lambda now: [
            now.meta_action(schemas=snapshot.schemas, bases=[base]),
            row.to_action(),
        ],
    )
    with pytest.raises((FormatError, ZarrbufError), match="missing"):
        loaded(str(tmp_path / "outer")).sample(1)


def test_a_link_beside_leads_where_it_leads(tmp_path: Path) -> None:
    """A directory beside the root that is a link to one elsewhere is elsewhere."""
    here = tmp_path / "here"
    uuid = open_log(open_storage(make(here / "source", 9, 1))).uuid
    path = forged(here, {"url": "../link", "uuid": uuid})
    (tmp_path / "deep").mkdir()
    (here / "source").rename(tmp_path / "deep" / "source")
    (here / "link").symlink_to(tmp_path / "deep" / "source")
    with pytest.raises(UntrustedBaseError, match="deep/source"):
        loaded(path).sample(1)
    assert contents(path, allow_bases=[tmp_path / "deep"]) == [(0, 9)]
    # A link to what both lie in changes nothing.
    (here / "link").unlink()
    (tmp_path / "deep" / "source").rename(here / "link")
    (tmp_path / "way").symlink_to(here)
    assert contents(tmp_path / "way" / "x") == [(0, 9)]

"""Merges and splits of folders of RLinf's, and of the real two ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.numbered import files_below, lists_nothing, numbered
from support.paths import DATA
from support.remote import loaded, memory_url
from support.trajectories import assert_same_trajectory, make_trajectory

import zarrbuf
from zarrbuf import TrajectoryReplayBuffer, convert, merge, split
from zarrbuf.cli.main import main
from zarrbuf.cli.rlinf_scripts import find_sources, merge_or_split
from zarrbuf.errors import InvalidInputError, NotFoundError
from zarrbuf.storage.local import LocalStorage

RANKS = DATA / "rlinf_pt"


@pytest.fixture
def ranks(tmp_path: Path) -> list[Path]:
    """Copies of the two real ranks."""
    for name in ("rank_0", "rank_1"):
        shutil.copytree(RANKS / name, tmp_path / "ranks" / name)
    return [tmp_path / "ranks" / "rank_0", tmp_path / "ranks" / "rank_1"]


def plain_order(folders: list[Path]) -> list[Path]:
    """Files as RLinf's merge numbers them: by id, then by rank."""
    found = []
    for source, folder in enumerate(folders):
        index = json.loads((folder / "trajectory_index.json").read_text())
        for number in index["trajectory_id_list"]:
            (file,) = folder.glob(f"trajectory_{number}_*")
            found.append((number, source, file))
    return [file for _, _, file in sorted(found)]


def plain_batches(files: list[Path], *, seed: int) -> list[dict[str, torch.Tensor]]:
    """Draw as RLinf does from files read whole: rewards, actions, images, states."""
    trajectories = [torch.load(file, weights_only=True) for file in files]
    flat: dict[str, torch.Tensor] = {}
    for name in ("rewards", "actions"):
        flat[name] = torch.cat([one[name].flatten(0, 1) for one in trajectories])
    for group in ("curr_obs", "next_obs"):
        for key in ("main_images", "states"):
            parts = [one[group][key].flatten(0, 1) for one in trajectories]
            flat[f"{group}/{key}"] = torch.cat(parts)
    draws = torch.Generator().manual_seed(seed)
    total = len(flat["rewards"])
    picks = [torch.randint(0, total, (n,), generator=draws) for n in (16, 7, 64)]
    return [{name: one[pick] for name, one in flat.items()} for pick in picks]


def batches(path: Path | str) -> list[dict[str, torch.Tensor]]:
    buffer = loaded(str(path))
    found = []
    for size in (16, 7, 64):
        batch = buffer.sample(size)
        groups = {"curr_obs", "next_obs"}
        flat = {n: v for n, v in batch.items() if n in ("rewards", "actions")}
        for group in groups:
            for key in ("main_images", "states"):
                flat[f"{group}/{key}"] = batch[group][key]
        found.append(flat)
    buffer.close()
    return found


def assert_same_batches(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("mode", ["copy", "move"])
def test_merged_ranks_are_drawn_as_of_rlinfs_own_merge(
    ranks: list[Path], tmp_path: Path, mode: str
) -> None:
    expected = plain_batches(plain_order(ranks), seed=1234)
    done = merge(ranks, tmp_path / "all", mode=mode)
    assert_same_batches(batches(tmp_path / "all"), expected)
    assert (done.num_trajectories, done.total_samples) == (5, 160)
    assert zarrbuf.verify(tmp_path / "all").is_sound


def test_merged_buffers_are_drawn_as_of_rlinfs_own_merge(
    ranks: list[Path], tmp_path: Path
) -> None:
    expected = plain_batches(plain_order(ranks), seed=1234)
    for rank in ranks:
        convert(rank, tmp_path / rank.name)
    merge([tmp_path / "rank_0", tmp_path / "rank_1"], tmp_path / "all")
    assert_same_batches(batches(tmp_path / "all"), expected)


def test_a_merge_gives_files_and_index_that_rlinf_loads(
    ranks: list[Path], tmp_path: Path
) -> None:
    before = files_below(tmp_path / "ranks")
    files = plain_order(ranks)
    merge(ranks, tmp_path / "all")
    assert files_below(tmp_path / "ranks") == before
    folder = tmp_path / "all"
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata == {
        "trajectory_format": "pt",
        "size": 5,
        "total_samples": 160,
        "trajectory_counter": 5,
        "seed": 1234,
    }
    index = json.loads((folder / "trajectory_index.json").read_text())
    assert index["trajectory_id_list"] == [0, 1, 2, 3, 4]
    names = set()
    for number, file in enumerate(files):
        entry = index["trajectory_index"][str(number)]
        assert entry["trajectory_id"] == number
        assert entry["num_samples"] == entry["shape"][0] * entry["shape"][1]
        name = f"trajectory_{number}_{entry['model_weights_id']}.pt"
        assert (folder / name).read_bytes() == file.read_bytes()
        names.add(name)
    assert names | {"metadata.json", "trajectory_index.json"} == set(
        files_below(folder)
    )


def test_a_move_takes_files_and_entries(ranks: list[Path], tmp_path: Path) -> None:
    split(ranks[0], tmp_path / "two", count=2, mode="move")
    assert len(loaded(str(tmp_path / "two"))) == 2
    left = loaded(str(ranks[0]))
    assert left._trajectory_id_list == [2]
    assert len(list(ranks[0].glob("trajectory_*.pt"))) == 1
    assert left.sample(9)["rewards"].shape[0] == 9


def test_a_split_of_a_folder(ranks: list[Path], tmp_path: Path) -> None:
    before = files_below(tmp_path)
    (done,) = split(ranks[0], tmp_path / "two", ids="0,2")
    assert done.mode == "copy"
    buffer = loaded(str(tmp_path / "two"))
    assert buffer._trajectory_id_list == [0, 1]
    weights = [one["model_weights_id"] for one in buffer._trajectory_index.values()]
    assert [name[-2:] for name in weights] == ["_0", "20"]
    after = files_below(tmp_path)
    assert {name: after[name] for name in before} == before


def test_calls_that_cannot_be_done_change_nothing(
    ranks: list[Path], tmp_path: Path
) -> None:
    convert(ranks[0], tmp_path / "zarr")
    convert(ranks[0], tmp_path / "pkl", to="pkl")
    (tmp_path / "other").mkdir()
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=str(tmp_path / "other"), trajectory_format="pt"
    ) as buffer:
        buffer.add_trajectories(numbered(0, 1))
    before = files_below(tmp_path)
    x = tmp_path / "x"
    calls: list[tuple[type[Exception], str, Any]] = [
        (
            InvalidInputError,
            r"several formats \(pt, zarr\); convert",
            lambda: merge([ranks[0], tmp_path / "zarr"], x),
        ),
        (
            InvalidInputError,
            r"several formats \(pkl, pt\); convert",
            lambda: merge([ranks[0], tmp_path / "pkl"], x),
        ),
        (InvalidInputError, "copy and move", lambda: merge(ranks, x, mode="reference")),
        (InvalidInputError, "copy and move", lambda: merge(ranks, x, mode="hardlink")),
        (InvalidInputError, "same buffer", lambda: merge([ranks[0], ranks[0]], x)),
        (InvalidInputError, "not empty", lambda: merge(ranks, tmp_path / "zarr")),
        (InvalidInputError, "local path", lambda: merge(ranks, memory_url())),
        (
            InvalidInputError,
            r"field 'rewards' is float32 \[\].*before it is float32 \[",
            lambda: merge([ranks[0], tmp_path / "other"], x),
        ),
        (NotFoundError, "none", lambda: merge([ranks[0], tmp_path / "none"], x)),
    ]
    for kind, words, call in calls:
        with pytest.raises(kind, match=words):
            call()
        assert files_below(tmp_path) == before, words


def test_a_file_that_vanishes_leaves_nothing(ranks: list[Path], tmp_path: Path) -> None:
    store_open = LocalStorage.create
    last = plain_order(ranks)[-1]

    def vanish(self: LocalStorage, name: str, data: bytes) -> Any:
        last.unlink(missing_ok=True)
        return store_open(self, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "create", vanish)
        with pytest.raises(NotFoundError, match=f"{last} does not exist"):
            merge(ranks, tmp_path / "all")
    assert lists_nothing(tmp_path / "all")


# The script with RLinf's flags.


def run(*arguments: str | Path, check: int = 0) -> str:
    done = CliRunner().invoke(merge_or_split, list(map(str, arguments)))
    assert done.exit_code == check, done.stderr
    return done.stdout + done.stderr


def test_the_script_merges_ranks_by_name(ranks: list[Path], tmp_path: Path) -> None:
    source = tmp_path / "ranks"
    shutil.copytree(ranks[1], source / "rank_10")
    (source / "rank_1").rename(source / "rank_2")
    (source / "notes").mkdir()
    (source / "rank_3").write_text("no folder")
    found = [Path(path).name for path in find_sources(str(source))]
    assert found == ["rank_0", "rank_10", "rank_2"]
    before = files_below(source)
    text = run("--source-path", source, "--save-path", tmp_path / "all")
    assert "7 trajectories, 224 samples" in text
    assert files_below(source) == before
    run("--source-path", source, "--save-path", tmp_path / "moved", "--move")
    assert files_below(tmp_path / "moved") == files_below(tmp_path / "all")
    assert not list(source.glob("rank_*/*.pt"))


@pytest.mark.parametrize(
    ("given", "options", "taken"),
    [
        (["rank_0", "rank_10", "rank_2"], [], ["rank_0", "rank_2", "rank_10"]),
        (["rank_0", "rank_10", "rank_2"], ["--keep-order"], None),
        (["rank_2", "rank_10", "rank_0"], [], None),  # somebody's own order
        (["other", "rank_10", "rank_2"], [], None),
        (["rank_0", "rank_2"], [], None),
    ],
)
def test_the_command_merges_ranks_by_number(
    given: list[str], options: list[str], taken: list[str] | None, tmp_path: Path
) -> None:
    for number, name in enumerate(given):
        with TrajectoryReplayBuffer(
            auto_save=True, auto_save_path=tmp_path / name
        ) as buffer:
            buffer.add_trajectories([make_trajectory(2, 1, seed=number)])
    paths = [str(tmp_path / name) for name in given]
    done = CliRunner().invoke(main, ["merge", *options, *paths, str(tmp_path / "all")])
    assert done.exit_code == 0, done.output
    assert ("sources go by number" in done.stderr) == (taken is not None)
    merged = loaded(str(tmp_path / "all"))
    for number, name in enumerate(taken or given):
        expected = make_trajectory(2, 1, seed=given.index(name))
        assert_same_trajectory(merged.load_trajectory(number), expected)


def test_the_script_splits(ranks: list[Path], tmp_path: Path) -> None:
    arguments = ("--source-path", ranks[0], "--save-path", tmp_path / "x")
    text = run(*arguments, "--split-count", 9, check=2)
    assert "count is 9; the buffer holds 3 trajectories" in text
    run(*arguments, "--split-count", 2)
    assert len(loaded(str(tmp_path / "x"))) == 2
    ranks_path = tmp_path / "ranks"
    many = ("--source-path", ranks_path, "--save-path", tmp_path / "y")
    assert "merge them first" in run(*many, "--split-count", 2, check=2)
    assert "exclude" in run(*many, "--copy", "--move", check=2)
    assert not (tmp_path / "y").exists()


def test_the_script_merges_zarr_by_reference_unless_told(
    ranks: list[Path], tmp_path: Path
) -> None:
    for rank in ranks:
        convert(rank, tmp_path / "zarr" / rank.name)
    run("--source-path", tmp_path / "zarr", "--save-path", tmp_path / "zarr" / "all")
    assert not (tmp_path / "zarr" / "all" / "trajectories").exists()
    run("--source-path", tmp_path / "zarr", "--save-path", tmp_path / "c", "--copy")
    shutil.rmtree(tmp_path / "zarr")
    assert len(loaded(str(tmp_path / "c"))) == 5

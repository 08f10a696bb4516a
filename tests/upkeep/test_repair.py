"""Damage done on purpose, and what a repair says of it and saves."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.clock import put_forward
from support.numbered import contents, files_below, make, numbered
from support.paths import DATA
from support.remote import loaded, memory_url
from support.s3 import S3

import zarrbuf
from zarrbuf import TrajectoryReplayBuffer, repair, verify
from zarrbuf.archive.zarr_json import encode_json
from zarrbuf.cli import main as cli
from zarrbuf.errors import (
    FormatError,
    NotFoundError,
    StorageError,
    UnsupportedVersionError,
)
from zarrbuf.manifest.actions import seal, unseal
from zarrbuf.manifest.layout import commit_path
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.resolve import open_storage
from zarrbuf.stores.logged import LogStore
from zarrbuf.upkeep.repair import log_plan

FOLDER = DATA / "rlinf_pt" / "rank_0"


def flip(path: Path, at: int = -40) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A buffer of five commits, of which 2 to 5 add 1, 2, 1 and 1 trajectories."""
    for first, count in ((0, 1), (1, 2), (3, 1), (4, 1)):
        make(tmp_path / "a", first, count)
    return tmp_path / "a"


def archive_of(path: Path, number: int) -> Path:
    row = zarrbuf.list_buffer(path).rows.row(number)
    return path / row.path


def check_dry_then_apply(path: Path) -> Any:
    """Repair; first without doing it, which has to say the same."""
    before = files_below(path)
    planned = repair(path)
    assert files_below(path) == before
    assert planned.problems
    assert planned.steps
    done = repair(path, apply=True)
    assert done.problems == planned.problems
    assert done.steps == planned.steps
    assert done.num_trajectories == planned.num_trajectories
    again = repair(path)
    assert again.steps == []
    assert [one for one in again.problems if "(left out)" not in one] == []
    return done


def test_nothing_is_done_to_what_is_sound(source: Path) -> None:
    before = files_below(source)
    done = repair(source, apply=True)
    assert (done.problems, done.steps, done.orphans) == ([], [], [])
    assert done.num_trajectories == 5
    assert files_below(source) == before


def test_damaged_and_missing_archives_leave_the_list_by_a_commit(source: Path) -> None:
    flip(archive_of(source, 1), 200)
    archive_of(source, 3).unlink()
    done = check_dry_then_apply(source)
    assert len(done.problems) == 2
    assert done.steps == ["trajectories 1, 3 leave the list"]
    assert contents(source) == [(0, 0), (2, 2), (4, 4)]
    assert done.num_trajectories == 3
    last = zarrbuf.read_history(source)[-1]
    assert (last["op"], last["num_removed"]) == ("repair", 2)
    assert verify(source).is_sound
    assert len(done.orphans) == 1  # the damaged one is still there


@pytest.mark.parametrize("how", ["flipped", "cut", "missing", "empty"])
def test_a_damaged_commit_costs_what_it_alone_said(source: Path, how: str) -> None:
    """The third commit; what the fourth and fifth added is listed again."""
    commit = source / commit_path(3)
    if how == "flipped":
        flip(commit)
    elif how == "cut":
        commit.write_bytes(commit.read_bytes()[:-30])
    elif how == "missing":
        commit.unlink()
    else:
        commit.write_bytes(b"")
    with pytest.raises(FormatError):
        loaded(str(source))
    old = {name: data for name, data in files_below(source).items() if "manif" in name}
    done = check_dry_then_apply(source)
    assert "commits 3 to 5" in done.steps[0] or how == "missing"
    assert contents(source) == [(0, 0), (3, 3), (4, 4)]
    assert len(done.orphans) == 2  # of the damaged commit
    assert verify(source).is_sound
    kept = files_below(source / "damaged")
    for name, data in old.items():
        if name > commit_path(2):
            assert data in kept.values(), name
    make(source, 9, 1)
    assert contents(source)[-1] == (5, 9)


@pytest.mark.parametrize("are_whole", [True, False])
def test_a_later_checkpoint_tells_what_a_damaged_commit_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, are_whole: bool
) -> None:
    """It goes all the same: whoever opened it would go on where commits are no more."""
    monkeypatch.setattr("zarrbuf.manifest.commit_log.CHECKPOINT_INTERVAL", 2)
    for number in range(6):
        make(tmp_path / "a", number, 1)
    late = sorted(tmp_path.glob("a/checkpoint/*"))[1:]
    assert len(late) == 2
    if not are_whole:
        for path in late:
            flip(path)
    flip(tmp_path / "a" / commit_path(3))
    planned = repair(tmp_path / "a")
    done = repair(tmp_path / "a", apply=True)
    assert (done.steps, done.problems) == (planned.steps, planned.problems)
    assert any("checkpoint still tells" in one for one in done.steps) == are_whole
    rest = [(2, 2), (3, 3), (4, 4), (5, 5)]
    expected = [(0, 0), (1, 1), *rest] if are_whole else [(0, 0), *rest]
    assert contents(tmp_path / "a") == expected
    assert done.num_trajectories == len(expected)
    assert verify(tmp_path / "a").is_sound
    assert repair(tmp_path / "a").steps == []
    kept = list(tmp_path.glob("a/damaged/*/checkpoint/*"))
    assert {path.name for path in late} == {path.name for path in kept}


def test_a_damaged_checkpoint_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zarrbuf.manifest.commit_log.CHECKPOINT_INTERVAL", 2)
    for number in range(3):
        make(tmp_path / "a", number, 1)
    first, second = sorted(tmp_path.glob("a/checkpoint/*"))
    flip(first)
    assert not verify(tmp_path / "a").is_sound
    done = check_dry_then_apply(tmp_path / "a")
    assert done.steps == ["1 damaged checkpoints are put aside"]
    assert sorted(tmp_path.glob("a/checkpoint/*")) == [second]
    assert verify(tmp_path / "a").is_sound
    assert contents(tmp_path / "a") == [(0, 0), (1, 1), (2, 2)]


def test_a_damaged_last_commit_costs_itself(source: Path) -> None:
    flip(source / commit_path(5))
    done = check_dry_then_apply(source)
    assert contents(source) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert len(done.orphans) == 1


def test_what_later_commits_removed_stays_removed(source: Path) -> None:
    zarrbuf.remove(source, "3")
    flip(source / commit_path(3))
    repair(source, apply=True)
    assert contents(source) == [(0, 0), (4, 4)]


def test_what_whole_commits_say_stands(source: Path) -> None:
    """Those after the damaged one: removals of what came before it, too."""
    zarrbuf.remove(source, "0")
    state = TrajectoryReplayBuffer(auto_save_path=str(source), seed=7)
    state.load_checkpoint(str(source))
    state.save_checkpoint(str(source))
    state.close()
    flip(source / commit_path(3))
    done = check_dry_then_apply(source)
    assert "1 trajectories that they removed leave the list" in done.steps
    assert contents(source) == [(3, 3), (4, 4)]
    assert loaded(str(source)).sample(5)["rewards"].shape[0] == 5
    assert LogStore.open(open_storage(source)).state is not None
    assert verify(source).is_sound


def test_segments_and_recompressed_archives_are_not_lost(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zarrbuf.stores.logged.MAX_ADDS", 2)
    zarrbuf.recompress(source, codec="zstd")
    make(source, 7, 1)
    uuids = {row.uuid for row in rows_of(source)}
    flip(source / commit_path(3))
    check_dry_then_apply(source)
    # The list that the recompression wrote names every trajectory, once.
    assert contents(source) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 7)]
    assert {row.uuid for row in rows_of(source)} == uuids
    assert verify(source, deep=True).is_sound


def rows_of(path: Path) -> list[Any]:
    rows = zarrbuf.list_buffer(path).rows
    return [rows.row(number) for number in range(len(rows))]


def test_what_is_kept_for_others_stays_kept(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = source.parent / "m"
    zarrbuf.merge([source], merged)
    zarrbuf.remove(source, "0,4")
    flip(source / commit_path(3))
    done = check_dry_then_apply(source)
    assert any("stays kept" in one and str(merged) in one for one in done.steps)
    assert contents(source) == [(3, 3)]
    zarrbuf.remove(source, "3")
    put_forward(monkeypatch, lambda: 300)
    gone = zarrbuf.vacuum(source, delete=True).names
    # Only what the damaged commit added is kept by nothing any more, and what the plan
    # of the repair, which is done, was written in.
    assert [name.partition("/")[0] for name in gone] == [
        *["trajectories"] * 2,
        "segment",
    ]
    problems = verify(merged).problems
    assert len(problems) == 2
    assert all("trajectory_1_" in one or "trajectory_2_" in one for one in problems)


def test_what_cannot_be_reached_for_now_stays_listed(tmp_path: Path) -> None:
    make(tmp_path / "far" / "a", 0, 2)
    merged = tmp_path / "m"
    zarrbuf.merge([tmp_path / "far" / "a"], merged, allow_bases=[tmp_path / "far"])
    done = repair(merged, apply=True)
    assert len(done.problems) == 2
    assert "--allow-base" in done.problems[0]
    assert (done.steps, done.num_trajectories) == ([], 2)
    (tmp_path / "far").rename(tmp_path / "away")
    done = repair(merged, apply=True, allow_bases=[tmp_path / "far"])
    assert (done.steps, done.num_trajectories) == ([], 2)
    (tmp_path / "away").rename(tmp_path / "far")
    allowed = verify(merged, allow_bases=[tmp_path / "far"])
    assert (allowed.is_sound, allowed.unreachable_ids) == (True, [])
    (row,) = (one for one in rows_of(tmp_path / "far" / "a")[:1])
    (tmp_path / "far" / "a" / row.path).unlink()
    done = repair(merged, apply=True, allow_bases=[tmp_path / "far"])
    assert done.steps == ["trajectories 0 leave the list"]


def test_files_of_others_are_nobodys_business(source: Path) -> None:
    for name in (".DS_Store", "zz/x.txt", "ab/notes.txt"):
        path = source / "trajectories" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert verify(source).is_sound
    done = repair(source, apply=True)
    assert (done.problems, done.steps, done.orphans) == ([], [], [])


@pytest.mark.parametrize("is_first_damaged", [False, True])
def test_a_commit_of_a_newer_program_is_not_damaged(
    source: Path, is_first_damaged: bool
) -> None:
    path = source / commit_path(4)
    header, *actions = unseal(path.read_bytes(), where="")
    documents = [{**header, "zarrbuf": 2}, *actions]
    path.write_bytes(seal(documents, actions=len(actions)))
    if is_first_damaged:
        flip(source / commit_path(3))
    before = files_below(source)
    with pytest.raises(UnsupportedVersionError):
        repair(source, apply=True)
    assert files_below(source) == before


class StoppedError(BaseException):
    """The process is gone."""


def test_a_repair_that_is_stopped_anywhere_goes_on(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a pin, a removal, a late checkpoint: after every change it makes."""
    zarrbuf.merge([source], source.parent / "m")
    zarrbuf.remove(source, "0,4")
    flip(source / commit_path(3))
    changes = [getattr(LocalStorage, name) for name in ("create", "delete")]
    outcomes = set()
    for stop in itertools.count():
        path = copied(source, f"s{stop}")
        left = [stop]

        def counted(change: Any, left: list[int] = left) -> Any:
            def call(self: LocalStorage, *arguments: Any) -> Any:
                if left[0] == 0:
                    raise StoppedError
                left[0] -= 1
                return change(self, *arguments)

            return call

        for change in changes:
            monkeypatch.setattr(LocalStorage, change.__name__, counted(change))
        try:
            repair(path, apply=True)
        except StoppedError:
            is_stopped = True
        else:
            is_stopped = False
        monkeypatch.undo()
        if is_stopped:
            begun = [one for one in verify(path).problems if "was stopped" in one]
            planned = repair(path)
            assert bool(begun) == any("goes on" in one for one in planned.steps)
            repair(path, apply=True)
        assert verify(path).is_sound, stop
        assert repair(path).steps == []
        pins = LogStore.open(open_storage(path)).log.snapshot.pins
        outcomes.add((tuple(contents(path)), len(pins)))
        if not is_stopped:
            break
    assert stop > 10
    assert outcomes == {(((3, 3),), 2)}


def copied(source: Path, name: str) -> Path:
    shutil.copytree(source, source.parent / name)
    return source.parent / name


def test_buffers_on_object_stores_are_repaired(s3: S3) -> None:
    for url, options in (
        (memory_url(), None),
        (s3.url("x"), s3.options("s3fs")),
        (s3.url("y"), s3.options("obstore")),
    ):
        make(url, 0, 1, options)
        make(url, 1, 1, options)
        storage = open_storage(url, options)
        data = storage.read(commit_path(3))
        storage.delete(commit_path(3))
        storage.ensure(commit_path(3), data[:-5])
        done = repair(url, apply=True, storage_options=options)
        assert len(done.orphans) == 1
        assert verify(url, storage_options=options).is_sound
        assert len(loaded(url, options)) == 1


def test_what_is_no_buffer_is_not_repaired(tmp_path: Path, source: Path) -> None:
    with pytest.raises(NotFoundError, match="none"):
        repair(tmp_path / "none", apply=True)
    (source / "zarrbuf.json").write_bytes(b"{}")
    before = files_below(source)
    with pytest.raises(FormatError, match=r"zarrbuf\.json"):
        repair(source, apply=True)
    assert files_below(source) == before


def test_a_deep_look_decodes_and_compares_tags(tmp_path: Path) -> None:
    source = tmp_path / "a"
    make(source, 3, 1)
    assert verify(source, deep=True).is_sound
    wrong = source / commit_path(2)
    lines = wrong.read_bytes().split(b"\n")
    assert b'"mean_return":9' in wrong.read_bytes()
    from_log = [line.replace(b'"mean_return":9', b'"mean_return":8') for line in lines]
    body = b"\n".join(from_log[:-2]) + b"\n"
    end = json.loads(lines[-2])
    end["end"] = hashlib.sha256(body).hexdigest()
    sealed = json.dumps(end, separators=(",", ":"), sort_keys=True).encode()
    wrong.write_bytes(body + sealed + b"\n")
    assert verify(source).is_sound
    result = verify(source, deep=True)
    assert "its mean_return is 9, in the manifest 8" in result.problems[0]
    assert result.damaged_ids == [0]


# Folders of RLinf's.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FOLDER, tmp_path / "folder")
    return tmp_path / "folder"


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def test_torn_and_missing_json_is_written_anew(folder: Path) -> None:
    whole = {name: (folder / name).read_bytes() for name in ("metadata.json",)}
    index = json.loads((folder / "trajectory_index.json").read_text())
    drawn = loaded(str(folder)).sample(20)
    for damage in ("torn index", "no index", "torn metadata", "no json at all"):
        if damage in ("torn index",):
            tear(folder / "trajectory_index.json")
        if damage in ("no index", "no json at all"):
            (folder / "trajectory_index.json").unlink()
        if damage == "torn metadata":
            tear(folder / "metadata.json")
        if damage == "no json at all":
            (folder / "metadata.json").unlink()
        done = check_dry_then_apply(folder)
        assert done.num_trajectories == 3, damage
        assert verify(folder).is_sound
        now = json.loads((folder / "trajectory_index.json").read_text())
        assert now["trajectory_id_list"] == index["trajectory_id_list"]
        for number, entry in index["trajectory_index"].items():
            ours = now["trajectory_index"][number]
            assert ours["model_weights_id"] == entry["model_weights_id"]
            assert ours["num_samples"] == entry["num_samples"]
        metadata = json.loads((folder / "metadata.json").read_text())
        assert metadata == json.loads(whole["metadata.json"])
        batch = loaded(str(folder)).sample(20)
        assert torch.equal(batch["actions"], drawn["actions"]), damage


def test_the_misspelt_name_is_mended(folder: Path) -> None:
    (folder / "trajectory_index.json").rename(folder / "trajector_index.json")
    done = check_dry_then_apply(folder)
    assert "misspelt" in done.problems[0]
    assert (folder / "trajectory_index.json").exists()
    assert len(loaded(str(folder))) == 3


def test_files_and_entries_that_do_not_match_are_told(folder: Path) -> None:
    files = sorted(folder.glob("*.pt"))
    shutil.copy(files[0], folder / "trajectory_7_abc_3.pt")  # no entry
    files[1].unlink()  # an entry, no file
    tear(files[2])
    done = check_dry_then_apply(folder)
    text = "\n".join(done.problems)
    assert "lists trajectory 1, whose file is not there" in text
    assert "trajectory_7_abc_3.pt: is not in the index" in text
    assert f"{files[2].name}: cut short" in text
    assert done.orphans == [files[2].name]
    buffer = loaded(str(folder))
    assert buffer._trajectory_id_list == [0, 7]
    assert buffer._trajectory_index[7]["model_weights_id"] == "abc_3"
    assert buffer.sample(9)["rewards"].shape[0] == 9
    assert json.loads((folder / "metadata.json").read_text())["trajectory_counter"] == 8
    assert files[2].exists()


def test_what_a_run_let_go_of_stays_counted(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(DATA / "rlinf_edge" / "evicted", folder)
    with pytest.raises(FileNotFoundError, match=r"5 in all.*zarrbuf repair"):
        loaded(str(folder), sample_window_size=100)
    done = check_dry_then_apply(folder)
    assert done.num_trajectories == 3
    buffer = loaded(str(folder), sample_window_size=100)
    assert (buffer.window_trajectories, buffer.size, buffer.total_samples) == (3, 8, 78)
    assert buffer._trajectory_counter == 8


def test_a_folder_without_a_seed_gets_none(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(DATA / "rlinf_edge" / "no_seed", folder)
    sorted(folder.glob("trajectory_[0-9]*"))[-1].unlink()
    check_dry_then_apply(folder)
    assert "seed" not in json.loads((folder / "metadata.json").read_text())


def test_a_counter_below_an_id_is_mended(folder: Path) -> None:
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["trajectory_counter"] = 1
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(FormatError, match="trajectory_counter is 1, and trajectory 2"):
        loaded(str(folder))
    check_dry_then_apply(folder)
    assert loaded(str(folder))._trajectory_counter == 3


def test_wrong_entries_are_corrected_and_the_old_index_is_kept(folder: Path) -> None:
    path = folder / "trajectory_index.json"
    index = json.loads(path.read_text())
    index["trajectory_index"]["1"]["shape"] = [99, 2, 4]
    path.write_text(json.dumps(index))
    old = path.read_bytes()
    done = check_dry_then_apply(folder)
    assert "entry 1 is not what" in done.problems[0]
    assert verify(folder).is_sound
    (aside,) = folder.glob("trajectory_index.json.*.damaged")
    assert aside.read_bytes() == old


def test_files_of_two_formats_are_not_mixed(folder: Path) -> None:
    file = next(folder.glob("trajectory_0_*.pt"))
    file.rename(file.with_suffix(".pkl"))
    done = repair(folder, apply=True)
    assert any("the folder holds pt files" in one for one in done.problems)
    assert done.num_trajectories == 2


def test_a_folder_of_files_alone_becomes_a_buffer(tmp_path: Path) -> None:
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=str(tmp_path / "a"), trajectory_format="pkl"
    ) as buffer:
        buffer.add_trajectories(numbered(0, 12))
    for name in ("metadata.json", "trajectory_index.json"):
        (tmp_path / "a" / name).unlink()
    repair(tmp_path / "a", apply=True)
    assert contents(tmp_path / "a") == [(n, n) for n in range(12)]  # by number


def test_the_command(source: Path) -> None:
    def run(*arguments: Any) -> str:
        done = CliRunner().invoke(cli.main, list(map(str, arguments)))
        assert done.exit_code == 0, done.stderr
        return done.stdout

    assert run("repair", source).splitlines() == [
        f"{source}: 5 trajectories listed now"
    ]
    flip(archive_of(source, 1), 200)
    text = run("repair", source)
    assert "damaged: trajectory_1_w_1.zarr" in text
    assert "to do: trajectories 1 leave the list" in text
    assert "4 trajectories listed then; --apply does it" in text
    assert "done: trajectories 1 leave the list" in run("repair", source, "--apply")
    assert "sound" in run("verify", source, "--deep")


@pytest.mark.parametrize("place", ["trajectories", "manifest", "segment"])
def test_what_lies_behind_a_link_is_not_taken_for_absent(
    source: Path, tmp_path: Path, place: str
) -> None:
    before = contents(source)
    (source / place).mkdir(exist_ok=True)
    (source / place).rename(tmp_path / "disk")
    (source / place).symlink_to(tmp_path / "disk")
    said = f"{place} is a link; below the root"
    if place != "segment":  # of which there is no need here
        with pytest.raises(StorageError, match=said):
            repair(source, apply=True)
        with pytest.raises(StorageError, match=said):
            raise StorageError("; ".join(verify(source).problems))
    (source / place).unlink()
    (tmp_path / "disk").rename(source / place)
    assert contents(source) == before


def plan_of_a_stopped_repair(source: Path, patch: pytest.MonkeyPatch) -> Path:
    """Stop a repair when its plan is written, and return where it lies."""
    flip(source / commit_path(3))
    with patch.context() as inner:
        inner.setattr(log_plan, "_finish", lambda log, plan: None)
        repair(source, apply=True)
    (found,) = source.glob("damaged/*/plan.json")
    return found


CHANGES: list[Any] = [
    lambda plan: plan["removed"].append("ab" * 16),
    lambda plan: plan.update(start=plan["start"] - 1),
]
HOSTILE: list[Any] = [
    lambda plan: plan.update(start="1"),
    lambda plan: plan.update(names=[1]),
    lambda plan: plan.update(names=["zarrbuf.json"]),
    lambda plan: plan.update(pins=[]),
    lambda plan: plan.update(rows=[1]),
    lambda plan: plan.update(rows=None),
    lambda plan: plan.update(meta=1),
    lambda plan: plan.pop("place"),
    lambda plan: plan.update(more=1),
]


@pytest.mark.parametrize(
    ("change", "is_sealed"),
    [
        *((one, False) for one in (*CHANGES, *HOSTILE)),
        *((one, True) for one in HOSTILE),
    ],
)
def test_a_plan_that_was_changed_is_not_carried_out(
    source: Path, monkeypatch: pytest.MonkeyPatch, change: Any, is_sealed: bool
) -> None:
    path = plan_of_a_stopped_repair(source, monkeypatch)
    value = json.loads(path.read_text())
    change(value["plan"])
    if is_sealed:
        value["sha256"] = hashlib.sha256(encode_json(value["plan"])).hexdigest()
    path.write_text(json.dumps(value))
    before = files_below(source)
    with pytest.raises(FormatError, match="plan of a repair is damaged"):
        repair(source, apply=True)
    assert files_below(source) == before


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"plan": 1, "sha256": 2}', "[" * 9999]
)
def test_what_is_no_plan_is_named(
    source: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = plan_of_a_stopped_repair(source, monkeypatch)
    path.write_text(text)
    with pytest.raises(FormatError, match=r"plan\.json: the plan of a repair is"):
        repair(source, apply=True)
    path.unlink()
    repair(source, apply=True)
    assert verify(source).is_sound

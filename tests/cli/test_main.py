"""The commands, run as a user runs them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.batches import leaves
from support.paths import DATA, ROOT
from support.trajectories import make_trajectory

import zarrbuf
from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.cli import main as cli
from zarrbuf.manifest.layout import trajectory_path

FOLDER = DATA / "rlinf_ragged_pt"


def run(*arguments: str | Path, check: int = 0) -> Result:
    """Run `zarrbuf` and assert its exit code, and that an error is one line."""
    done = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert done.exit_code == check, done.stderr
    assert done.exception is None or isinstance(done.exception, SystemExit)
    if check and done.stderr and not done.stderr.startswith("Usage"):
        assert done.stderr.startswith("zarrbuf: "), done.stderr
        assert done.stderr.count("\n") == 1
    if not check:
        assert done.stderr == ""
    return done


def test_the_command_is_installed_and_fails_in_one_line() -> None:
    command = [sys.executable, "-W", "error", "-m", "zarrbuf.cli", "info", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("zarrbuf: ")
    assert done.stderr.count("\n") == 1
    script = Path(sys.executable).parent / "zarrbuf"
    version = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert version.stdout == f"zarrbuf, version {zarrbuf.__version__}\n"


def run_json(*arguments: str | Path, check: int = 0) -> Any:
    """Run a command with `--json` and return what it prints."""
    return json.loads(run(*arguments, "--json", check=check).stdout)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "buffer"
    run("convert", FOLDER, path)
    return path


def test_convert_says_what_it_did(tmp_path: Path) -> None:
    report = run_json("convert", FOLDER, tmp_path / "out", "--codec", "zstd")
    assert report["num_trajectories"] == 5
    assert report["total_samples"] == 84
    assert (report["source_format"], report["destination_format"]) == ("pt", "zarr")
    files = list((tmp_path / "out").glob("trajectories/*/*.zip"))
    assert report["destination_bytes"] == sum(file.stat().st_size for file in files)
    text = run("convert", tmp_path / "out", tmp_path / "pt", "--to", "pt").stdout
    assert re.search(r" \([1-9][\d.]+ times the size\)", text)
    text = run("convert", FOLDER, tmp_path / "pkl", "--to", "pkl").stdout
    assert "5 trajectories, 84 samples, pt -> pkl" in text
    run("remove", tmp_path / "out", "--ids", "0-4")
    text = run("convert", tmp_path / "out", tmp_path / "none").stdout
    assert text.endswith("0 trajectories, 0 samples, zarr -> zarr, 0 B -> 0 B\n")


def test_sample_draws_what_the_buffer_draws(converted: Path) -> None:
    report = run_json(
        "sample", "--load-path", converted, "--num-chunks", "7", "--seed", "5"
    )
    buffer = TrajectoryReplayBuffer(sample_window_size=0)
    buffer.load_checkpoint(converted)
    buffer.manual_seed(5)
    expected = {
        "/".join(path): {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
        }
        for path, tensor in leaves(buffer.sample(7)).items()
    }
    assert report["batch"] == expected
    assert report["stats"]["samples"] == 7
    assert set(report["stats"]) == set(buffer.get_stats(detailed=True))


def test_sample_prints_fields_time_and_bytes(converted: Path) -> None:
    text = run("sample", "--load-path", converted, "--num-chunks", "48").stdout
    assert "forward_inputs/noise             [48, 8]                  bfloat16" in text
    assert "48 of 84 samples in 5 trajectories: drawn in " in text
    small = run_json(
        "sample",
        "--load-path",
        converted,
        "--num-chunks",
        "2",
        "--sample-window-size",
        "2",
        "--cache-size",
        "3",
        "--enable-cache",
    )
    assert small["stats"]["num_trajectories"] == 5
    assert small["stats"]["total_samples"] == 84
    assert small["stats"]["window_trajectories"] == 2
    assert small["stats"]["window_samples"] == 40
    assert small["stats"]["cache_trajectories"] > 0


@pytest.mark.parametrize(
    "command",
    [
        [ROOT / "toolkits" / "replay_buffer" / "sample_replay_buffer.py"],
        ["-m", "zarrbuf.replay_buffer"],
    ],
    ids=["toolkit script", "module"],
)
def test_rlinfs_sampling_command_has_its_flags_and_defaults(
    command: list[Any], tmp_path: Path
) -> None:
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=tmp_path) as buffer:
        buffer.add_trajectories([make_trajectory(2, 1, seed=n) for n in range(12)])

    def text(*flags: str) -> str:
        done = subprocess.run(
            [sys.executable, *command, "--load-path", tmp_path, *flags],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "4 of 20 samples in 10 trajectories" in text()
    flags = ["--num-chunks", "1024", "--cache-size", "10", "--enable-cache"]
    assert "1024 of 24 samples in 12" in text(*flags, "--sample-window-size", "0")


@pytest.mark.parametrize("kind", ["zarr", "pt"])
def test_info_and_ls_say_what_is_there(converted: Path, kind: str) -> None:
    path = converted if kind == "zarr" else FOLDER
    summary = run_json("info", path)
    assert summary["format"] == kind
    assert (summary["num_trajectories"], summary["total_samples"]) == (5, 84)
    assert "num_trajectories     5" in run("info", path).stdout
    listed = run_json("ls", path)["trajectories"]
    assert [entry["trajectory_id"] for entry in listed] == [0, 1, 2, 3, 4]
    assert [(entry["T"], entry["B"]) for entry in listed] == [
        (16, 1),
        (8, 2),
        (12, 1),
        (16, 2),
        (8, 1),
    ]
    name = f"trajectory_0_e99caacd-6c45-5906-bd9f-b79e62f25963_80.{kind}"
    assert listed[0]["name"] == name
    lines = run("ls", path).stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith(name)


@pytest.mark.parametrize("kind", ["zarr", "pt"])
def test_ls_does_not_load_torch(converted: Path, kind: str) -> None:
    path = converted if kind == "zarr" else FOLDER
    code = (
        "import sys; from zarrbuf.cli.main import main\n"
        "try: main(['ls', sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'zarrbuf.manifest.commit_log' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False True", done.stderr


def test_verify_tells_what_a_run_let_go_of() -> None:
    path = DATA / "rlinf_edge" / "evicted"
    evicted, summary = run("verify", path).stdout.splitlines()
    assert evicted == "evicted: 5 trajectories, let go of by a run"
    assert summary.startswith("3 trajectories")
    assert summary.endswith("sound")
    assert run_json("verify", path)["num_evicted"] == 5


def test_verify_passes_what_is_sound_and_names_what_is_not(
    converted: Path, tmp_path: Path
) -> None:
    report = run_json("verify", converted)
    assert report["is_sound"]
    assert report["num_trajectories"] == 5
    assert report["num_commits"] == 1
    assert "sound" in run("verify", converted).stdout
    damaged = tmp_path / "damaged"
    shutil.copytree(converted, damaged)
    victim = sorted(damaged.glob("trajectories/*/*.zip"))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    text = run("verify", damaged, check=1).stdout
    assert str(victim) in text
    assert "1 problems" in text
    assert not run_json("verify", damaged, check=1)["is_sound"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["sample", "--load-path", "nowhere", "--num-chunks", "4"], 1, "nowhere"),
        (["info", "nowhere"], 1, "nowhere"),
        (["ls", "nowhere"], 1, "nowhere"),
        (["verify", "nowhere"], 1, "nowhere"),
        (["convert", "nowhere", "out"], 1, "nowhere"),
        (["sample", "--load-path", "{buffer}", "--num-chunks", "0"], 2, "num_chunks"),
        (["sample", "--load-path", "{buffer}", "--num-chunks", "-3"], 2, "-3"),
        (
            [
                *["sample", "--load-path", "{buffer}", "--num-chunks", "3"],
                *["--sample-window-size", "-1"],
            ],
            2,
            "sample_window_size is -1",
        ),
        (["convert", "{buffer}", "{buffer}"], 2, "lies in the source"),
        (["convert", "{buffer}", "{buffer}/in"], 2, "lies in the source"),
        (["export", "{buffer}", "{buffer}/in"], 2, "lies in the source"),
        (["merge", "{buffer}", "{buffer}/in"], 2, "lies in the source"),
        (["split", "{buffer}", "{buffer}/in", "--count", "1"], 2, "lies in the source"),
        (["repair", "{buffer}/zarrbuf.json"], 1, "is a file, not a directory"),
        (["convert", "{buffer}", "ftp://host/x"], 2, "scheme"),
        (["info", "s3::file://x"], 2, "chained"),
        (["info", ""], 2, "path ''"),
    ],
)
def test_bad_calls_end_in_one_line(
    converted: Path, arguments: list[str], code: int, words: str
) -> None:
    given = [argument.format(buffer=converted) for argument in arguments]
    assert words in run(*given, check=code).stderr


def test_click_refuses_unknown_choices() -> None:
    assert "gzip" in run("convert", "a", "b", "--codec", "gzip", check=2).stderr
    assert "npz" in run("convert", "a", "b", "--to", "npz", check=2).stderr


def test_an_empty_buffer_cannot_be_sampled(tmp_path: Path) -> None:
    TrajectoryReplayBuffer(auto_save=True, auto_save_path=tmp_path).close()
    done = run("sample", "--load-path", tmp_path, "--num-chunks", "4", check=1)
    assert "holds no trajectory" in done.stderr
    assert run_json("info", tmp_path)["num_trajectories"] == 0
    assert run("ls", tmp_path).stdout == ""


def test_a_newer_spec_is_refused(converted: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(converted, newer)
    root = json.loads((newer / "zarrbuf.json").read_text())
    (newer / "zarrbuf.json").write_text(json.dumps({**root, "spec": 2}))
    for command in (["info"], ["sample", "--num-chunks", "2", "--load-path"]):
        assert "spec 2 is newer" in run(*command, newer, check=1).stderr
    assert "spec 2 is newer" in run("verify", newer, check=1).stdout


def test_names_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "x")
    index = tmp_path / "x" / "trajectory_index.json"
    text = index.read_text().replace(
        "e99caacd-6c45-5906-bd9f-b79e62f25963_80", r"\u001b[31mred"
    )
    index.write_text(text)
    listed = run("ls", tmp_path / "x").stdout
    assert "\x1b" not in listed
    assert r"\x1b[31mred" in listed


def test_progress_shows_on_a_terminal_only(tmp_path: Path) -> None:
    done = run("convert", FOLDER, tmp_path / "quiet")
    assert "it/s" not in done.stderr + done.stdout
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "zarrbuf.cli", "convert", FOLDER, tmp_path / "loud"],
        stderr=follower,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # the other side closed the terminal
            break
        if not part:
            break
        shown += part
    os.close(leader)
    assert process.wait() == 0
    assert b"trajectories" in shown
    assert b"convert" in shown


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 40, "5.0 TiB")],
)
def test_bytes_are_written_for_people(count: int, text: str) -> None:
    assert cli.format_bytes(count) == text


# Curation.


def test_buffers_are_merged_split_and_pruned(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run("convert", FOLDER, tmp_path / name)
    count = run_json("info", tmp_path / "a")["num_trajectories"]
    done = run_json("merge", tmp_path / "a", tmp_path / "b", tmp_path / "all")
    (made,) = done["made"]
    assert made["num_trajectories"] == 2 * count
    assert made["mode"] == "reference"
    text = run("split", tmp_path / "all", tmp_path / "x", "--count", 3).stdout
    assert "3 trajectories" in text
    assert "named where they are" in text
    run(
        "split", tmp_path / "all", tmp_path / "y", tmp_path / "z", "--fraction", ".5,.5"
    )
    run("split", tmp_path / "all", tmp_path / "w", "--where", "T > 0 and B > 0")
    removed = run_json("remove", tmp_path / "x", "--ids", "0,2")
    assert (removed["num_removed"], removed["num_left"]) == (2, 1)
    assert run_json("prune", tmp_path / "all", "--keep-newest", 2)["num_left"] == 2
    assert run_json("vacuum", tmp_path / "a")["names"] == []
    assert "0 archives would be deleted" in run("vacuum", tmp_path / "a").stdout
    history = run_json("log", tmp_path / "x")["commits"]
    assert [one["num_removed"] for one in history] == [0, 2]
    lines = run("log", tmp_path / "a").stdout.splitlines()
    assert "pinned by" in lines[-1]
    for name in ("a", "all", "x", "y", "z", "w"):
        run("verify", tmp_path / name)


def test_older_versions_are_read(tmp_path: Path) -> None:
    run("convert", FOLDER, tmp_path / "a")
    count = run_json("info", tmp_path / "a")["num_trajectories"]
    run("remove", tmp_path / "a", "--ids", "0-1")
    for command in ("ls", "info"):
        now = run_json(command, tmp_path / "a")
        then = run_json(command, tmp_path / "a", "--at", 1)
        assert now != then
    assert run_json("info", tmp_path / "a", "--at", 1)["num_trajectories"] == count
    sample = ("sample", "--num-chunks", 5, "--load-path", tmp_path / "a")
    stats = run_json(*sample, "--at", 1)["stats"]
    assert stats["num_trajectories"] == count
    assert run_json("verify", tmp_path / "a", "--at", 1)["num_trajectories"] == count
    assert run_json("verify", tmp_path / "a")["num_trajectories"] == count - 2
    assert "no version 9" in run("verify", tmp_path / "a", "--at", 9, check=1).stderr
    run("convert", tmp_path / "a", tmp_path / "old", "--at", 1)
    assert run_json("info", tmp_path / "old")["num_trajectories"] == count
    assert "no version 9" in run("ls", tmp_path / "a", "--at", 9, check=1).stderr
    run("verify", FOLDER, "--at", 1, check=2)
    text = run("ls", FOLDER, "--at", 1, check=2).stderr
    assert "keeps no versions" in text
    removed = zarrbuf.list_buffer(tmp_path / "a", version=1).rows.row(0)
    (tmp_path / "a" / trajectory_path(removed.uuid)).unlink()  # as vacuum would
    gone = run("verify", tmp_path / "a", "--at", 1, check=1).stdout
    assert "is missing" in gone
    run("verify", tmp_path / "a")


def test_what_a_buffer_names_elsewhere_is_allowed_by_an_option(tmp_path: Path) -> None:
    run("convert", FOLDER, tmp_path / "a")
    target = tmp_path / "deep" / "x"
    text = run("merge", tmp_path / "a", target, check=1).stderr
    assert "--allow-base" in text
    allow = ("--allow-base", tmp_path)
    run("merge", tmp_path / "a", target, *allow)
    sample = ("sample", "--num-chunks", 5, "--load-path", target)
    assert "--allow-base" in run(*sample, check=1).stderr
    run(*sample, *allow)
    run("verify", target, *allow)
    run("verify", target, check=1)


def test_conditions_are_pointed_at(tmp_path: Path) -> None:
    run("convert", FOLDER, tmp_path / "a")
    text = run(
        "split", tmp_path / "a", tmp_path / "x", "--where", "T >> 3", check=2
    ).stderr
    assert "at character 1, 'T >> 3'" in text
    assert not (tmp_path / "x").exists()
    bad = ("split", tmp_path / "a", tmp_path / "x", "--fraction", "half")
    assert "write 0.9,0.1" in run(*bad, check=2).stderr

"""Makes the frozen buffers: `PYTHONPATH=tests python -m support.freeze FOLDER`.

It is kept to show what lies in them and to write those of a next version of the format;
buffers that a released version wrote are never made anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from support.batches import leaves
from support.trajectories import make_trajectory, stored

from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.archive.zarr_json import CODECS
from zarrbuf.manifest.commit_log import open_log
from zarrbuf.manifest.log_checkpoints import write_checkpoint
from zarrbuf.storage.local import LocalStorage
from zarrbuf.upkeep.prune import remove

SEED = 11
CHECKPOINT_VERSION = 4


def digest(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's bits."""
    return hashlib.sha256(stored(tensor).tobytes()).hexdigest()


def tensors_of(trajectory: Trajectory) -> dict[str, list[Any]]:
    """Return dtype, shape and digest of each tensor of a trajectory, by path."""
    return {
        "/".join(name): [str(value.dtype), list(value.shape), digest(value)]
        for name, value in leaves(vars(trajectory)).items()
        if isinstance(value, torch.Tensor)
    }


def batch_of(buffer: TrajectoryReplayBuffer) -> dict[str, str]:
    """Draw 16 transitions and return the digest of each tensor, by path."""
    batch = leaves(buffer.sample(16))
    return {"/".join(name): digest(value) for name, value in batch.items()}


def trajectories() -> list[Trajectory]:
    """Return one plain, one of two environments, one with all that is odd."""
    longer = torch.arange(12, dtype=torch.float32).reshape(6, 2)
    odd = make_trajectory(
        4,
        2,
        seed=3,
        image_size=38,
        extra_epochs=2,
        with_next=False,
        rewards=longer,
        max_episode_length=None,
        grasp_labels=torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=torch.int16),
    )
    odd.forward_inputs["float8"] = torch.ones(4, 2).to(torch.float8_e4m3fn)
    odd.forward_inputs["odd/ü key"] = torch.full((4, 2), 1 - 2j, dtype=torch.complex64)
    plain = [
        make_trajectory(4, num_envs, seed=seed, image_size=38)
        for seed, num_envs in enumerate((1, 2, 1))
    ]
    return [*plain, odd]


def freeze(path: Path, codec: str) -> None:
    """Write one buffer at `path`, and beside it what is to be read of it."""
    with TrajectoryReplayBuffer(
        seed=SEED,
        auto_save=True,
        auto_save_path=path,
        sample_window_size=0,
        codec=codec,
    ) as buffer:
        for number, trajectory in enumerate(given := trajectories()):
            buffer.add_trajectories([trajectory])
            buffer.flush()
            if number + 2 == CHECKPOINT_VERSION:
                log = open_log(LocalStorage(path))
                write_checkpoint(log.storage, log.snapshot)
        buffer.sample(16)
        buffer.save_checkpoint(path)
    remove(path, [1])
    buffer = TrajectoryReplayBuffer(sample_window_size=0)
    buffer.load_checkpoint(path)
    ids = buffer._trajectory_id_list
    expected = {
        "batch": batch_of(buffer),
        "ids": ids,
        "trajectories": {n: tensors_of(given[n]) for n in ids},
    }
    text = json.dumps(expected, indent=1, sort_keys=True, ensure_ascii=False)
    path.with_name(f"{path.name}.json").write_text(text + "\n")


def main() -> None:
    """Write a buffer for each codec below the folder that the command names."""
    folder = Path(sys.argv[1])
    with (
        mock.patch("socket.gethostname", return_value="host"),
        mock.patch("os.getpid", return_value=1),
    ):
        for codec in sorted(CODECS):
            freeze(folder / codec, codec)


if __name__ == "__main__":
    main()

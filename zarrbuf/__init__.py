"""zarrbuf: replay buffers of trajectories as Zarr archives behind a commit log.

Public names load their module when first used, so that `import zarrbuf` costs nothing
and commands that need no tensors never load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zarrbuf.curation.convert import convert as convert
    from zarrbuf.curation.merge_split import merge as merge
    from zarrbuf.curation.merge_split import split as split
    from zarrbuf.curation.rewrite import export as export
    from zarrbuf.curation.rewrite import recompress as recompress
    from zarrbuf.replay.buffer import TrajectoryReplayBuffer as TrajectoryReplayBuffer
    from zarrbuf.replay.shadow import shadow as shadow
    from zarrbuf.replay.shadow import shadow_folder as shadow_folder
    from zarrbuf.stores.listing import list_buffer as list_buffer
    from zarrbuf.stores.listing import row_json as row_json
    from zarrbuf.stores.pins import unpin as unpin
    from zarrbuf.training.datasets import (
        PreloadReplayBufferDataset as PreloadReplayBufferDataset,
    )
    from zarrbuf.training.datasets import ReplayBufferDataset as ReplayBufferDataset
    from zarrbuf.training.datasets import (
        replay_buffer_collate_fn as replay_buffer_collate_fn,
    )
    from zarrbuf.trajectory.trajectory import Trajectory as Trajectory
    from zarrbuf.upkeep.history import read_history as read_history
    from zarrbuf.upkeep.prune import prune as prune
    from zarrbuf.upkeep.prune import remove as remove
    from zarrbuf.upkeep.repair.repair import repair as repair
    from zarrbuf.upkeep.vacuum import vacuum as vacuum
    from zarrbuf.upkeep.verify import verify as verify
    from zarrbuf.viewer.export import export_clip as export_clip
    from zarrbuf.viewer.modes import plot_step as plot_step
    from zarrbuf.viewer.modes import view as view
    from zarrbuf.viewer.trajectories import open_playback as open_playback

__version__ = "0.1.0"

_HOMES = {
    "TrajectoryReplayBuffer": "replay.buffer",
    "PreloadReplayBufferDataset": "training.datasets",
    "ReplayBufferDataset": "training.datasets",
    "Trajectory": "trajectory.trajectory",
    "convert": "curation.convert",
    "export": "curation.rewrite",
    "export_clip": "viewer.export",
    "list_buffer": "stores.listing",
    "merge": "curation.merge_split",
    "open_playback": "viewer.trajectories",
    "plot_step": "viewer.modes",
    "prune": "upkeep.prune",
    "read_history": "upkeep.history",
    "recompress": "curation.rewrite",
    "remove": "upkeep.prune",
    "repair": "upkeep.repair.repair",
    "replay_buffer_collate_fn": "training.datasets",
    "row_json": "stores.listing",
    "shadow": "replay.shadow",
    "shadow_folder": "replay.shadow",
    "split": "curation.merge_split",
    "unpin": "stores.pins",
    "vacuum": "upkeep.vacuum",
    "verify": "upkeep.verify",
    "view": "viewer.modes",
}

__all__ = [
    "PreloadReplayBufferDataset",
    "ReplayBufferDataset",
    "Trajectory",
    "TrajectoryReplayBuffer",
    "__version__",
    "convert",
    "export",
    "export_clip",
    "list_buffer",
    "merge",
    "open_playback",
    "plot_step",
    "prune",
    "read_history",
    "recompress",
    "remove",
    "repair",
    "replay_buffer_collate_fn",
    "row_json",
    "shadow",
    "shadow_folder",
    "split",
    "unpin",
    "vacuum",
    "verify",
    "view",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name == "schemas":
        return importlib.import_module("zarrbuf.schemas")
    if name not in _HOMES:
        raise AttributeError(f"module 'zarrbuf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"zarrbuf.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)

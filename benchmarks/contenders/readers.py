"""General Zarr libraries as contenders: they read the archives that zarrbuf wrote."""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import tensorstore as ts
import torch
import zarr
from zarr.storage import ZipStore

from benchmarks.contenders.contract import Contender, groups
from benchmarks.contenders.from_files import Zarrbuf
from benchmarks.data import CAMERAS, Flat
from zarrbuf import list_buffer

BIG: Final = tuple(
    f"{stage}/{name}" for stage in ("curr_obs", "next_obs") for name in CAMERAS
)
STAGES: Final = {"curr_obs": 0, "next_obs": 1}
TENSORSTORE_CACHE_BYTES: Final = 256 << 20
"""As much as zarrbuf may keep decoded by default."""


class ZarrReader(Contender):
    """A general Zarr library on zarrbuf's archives, opened once.

    Small fields are held decoded, as zarrbuf holds them; images come from the files.
    """

    writes = False

    def __init__(self, zarrbuf: Zarrbuf) -> None:  # noqa: D107
        super().__init__(zarrbuf.folder, zarrbuf.data)
        self._images: list[Mapping[str, Any]] = []
        self._small: Flat = {}

    @abc.abstractmethod
    def _open_images(self, path: Path) -> Mapping[str, Any]:
        """Open the two image arrays, [2, T, B, H, W, C], of one archive."""

    def open(self) -> None:  # noqa: D102
        rows = list_buffer(str(self.folder)).rows
        paths = [self.folder / rows.row(n).path for n in range(len(rows))]
        self._images = [self._open_images(path) for path in paths]
        tables = [read_small_fields(path) for path in paths]
        self._small = {
            name: torch.cat([table[name] for table in tables]) for name in tables[0]
        }

    def _start_batch(self, draws: torch.Tensor) -> Flat:
        batch = {n: v.index_select(0, draws) for n, v in self._small.items()}
        for name in BIG:
            array = self._images[0][name.partition("/")[2]]
            batch[name] = torch.empty((len(draws), *array.shape[3:]), dtype=torch.uint8)
        return batch

    def close(self) -> None:  # noqa: D102
        self._images = []
        self._small = {}


class Tensorstore(ZarrReader):
    """tensorstore: `vindex` on arrays that stay open, one `Batch` for all.

    It decodes into the batch itself, which is faster than copying what `read` returns.
    """

    name = "tensorstore on zarrbuf's archives"

    @functools.cached_property
    def _context(self) -> Any:
        limit = {"total_bytes_limit": TENSORSTORE_CACHE_BYTES}
        return ts.Context({"cache_pool": limit})

    def _open_images(self, path: Path) -> Mapping[str, Any]:
        base = {"driver": "file", "path": str(path)}
        return {
            name: ts.open(
                {
                    "driver": "zarr3",
                    "kvstore": {"driver": "zip", "base": base, "path": f"obs/{name}/"},
                    "recheck_cached_data": "open",
                },
                context=self._context,
                read=True,
            ).result()
            for name in CAMERAS
        }

    def sample(self, count: int) -> Any:  # noqa: D102
        draws = self.draw(count)
        batch = self._start_batch(draws)
        targets = {
            name: ts.array(batch[name].numpy(), copy=False, write=True) for name in BIG
        }
        copies = []
        with ts.Batch() as one:
            for number, rows, inside in groups(draws, self.data):
                step, env = np.divmod(inside.numpy(), self.data.num_envs)
                for name in BIG:
                    stage, _, camera = name.partition("/")
                    array = self._images[number][camera][STAGES[stage]]
                    target = targets[name].vindex[rows.numpy()]
                    copies.append(target.write(array.vindex[step, env], batch=one))
        for copy in copies:
            copy.result()
        return batch

    def close(self) -> None:  # noqa: D102
        super().close()
        self.__dict__.pop("_context", None)


class ZarrPython(ZarrReader):
    """zarr-python, one read per row."""

    name = "zarr-python on zarrbuf's archives, a read per row"
    rare = True

    def _open_images(self, path: Path) -> Mapping[str, Any]:
        group = zarr.open_group(ZipStore(path, mode="r"), mode="r")
        return {name: group[f"obs/{name}"] for name in CAMERAS}

    def sample(self, count: int) -> Any:  # noqa: D102
        draws = self.draw(count)
        batch = self._start_batch(draws)
        for number, rows, inside in groups(draws, self.data):
            for row, flat in zip(rows.tolist(), inside.tolist(), strict=True):
                step, env = divmod(flat, self.data.num_envs)
                for name in BIG:
                    stage, _, camera = name.partition("/")
                    image = self._images[number][camera][STAGES[stage], step, env]
                    batch[name][row] = torch.from_numpy(image)
        return batch


def read_small_fields(path: Path) -> Flat:
    """Read the small fields of an archive with zarr-python, as rows [T * B, ...]."""
    store = ZipStore(path, mode="r")
    group = zarr.open_group(store, mode="r")
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, array in _arrays(group):
        if name.rpartition("/")[2] in CAMERAS:
            continue
        values = array[...]
        if name.startswith("obs/"):
            for stage, number in STAGES.items():
                arrays[f"{stage}/{name[4:]}"] = values[number]
        else:
            arrays[name] = values
    store.close()
    steps = len(arrays["rewards"])
    return {
        name: torch.from_numpy(value[len(value) - steps :]).flatten(0, 1)
        for name, value in arrays.items()
    }


def _arrays(group: Any) -> Iterator[tuple[str, Any]]:
    for name, node in group.members(max_depth=None):
        if isinstance(node, zarr.Array):
            yield name, node

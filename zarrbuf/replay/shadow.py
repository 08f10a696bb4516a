"""RLinf's buffer and ours side by side: is every batch the same, and at what cost?

Owns who is given what, in which order, and what is measured. Whatever RLinf's buffer
does, the caller gets what ours does.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from zarrbuf.common.arguments import check_whole_number
from zarrbuf.common.jobs import Progress
from zarrbuf.curation.convert import convert
from zarrbuf.errors import InvalidInputError
from zarrbuf.replay.buffer import TrajectoryReplayBuffer
from zarrbuf.replay.held_memory import held_bytes
from zarrbuf.replay.rlinf_classes import find_buffer_class
from zarrbuf.replay.shadow_report import OURS, THEIRS, ShadowReport, find_difference
from zarrbuf.storage.resolve import Location, open_storage
from zarrbuf.stores.opening import format_at

_LOG: Final = logging.getLogger("zarrbuf")
_SIGNATURE: Final = inspect.signature(TrajectoryReplayBuffer)


class _Pair:
    """Both buffers, given the same. Safe between threads: one call at a time.

    Attributes:
        report: what came of it so far.
        is_over: whether RLinf's buffer is gone.
    """

    def __init__(self, make_theirs: Callable[[], Any], *, draws: int) -> None:
        """Compare so many draws of what `make_theirs` makes."""
        self.report = ShadowReport()
        self.is_over = False
        self._draws = draws
        self._lock = threading.RLock()
        self._theirs: Any = None
        self._theirs = self._do(lambda _: make_theirs())

    def _do(self, call: Callable[[Any], Any], times: list[float] | None = None) -> Any:
        """Have RLinf's buffer do something; what it raises is noted, and ends it."""
        if self.is_over:
            return None
        started = perf_counter()
        try:
            done = call(self._theirs)
        except Exception as exc:  # theirs to raise, and ours goes on
            self.report.stopped = f"{type(exc).__name__}: {exc!s:.300}"
            self.is_over = True
            return None
        if times is not None:
            times.append(perf_counter() - started)
        return done

    def both(self, ours: Callable[[], Any], theirs: Callable[[Any], Any]) -> Any:
        """Have both do something; return what ours does."""
        with self._lock:
            done = ours()
            self._do(theirs)
            return done

    def add(
        self, ours: Callable[[Sequence[Any]], None], trajectories: list[Any]
    ) -> None:
        """Add the same trajectories to both."""
        costs, times = self.report.costs, list[float]()
        with self._lock:
            started = perf_counter()
            ours(trajectories)
            spent = perf_counter() - started
            self._do(lambda one: one.add_trajectories(trajectories), times)
            count = len(trajectories)
            for name, seconds in ((OURS, [spent]), (THEIRS, times)):
                costs[name].add_seconds += [s / count for s in seconds] * count

    def draw(
        self,
        ours: Callable[[], dict[str, Any]],
        theirs: Callable[[Any], Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Draw from both, in turn the one or the other first, and compare."""
        report, costs = self.report, self.report.costs
        with self._lock:
            is_theirs_first = report.num_draws % 2 == 1
            times = costs[THEIRS].sample_seconds
            expected = self._do(theirs, times) if is_theirs_first else None
            started = perf_counter()
            batch = ours()
            costs[OURS].sample_seconds.append(perf_counter() - started)
            if not is_theirs_first:
                expected = self._do(theirs, times)
            if expected is not None:
                self._compare(batch, expected)
            return batch

    def _compare(self, batch: dict[str, Any], expected: Mapping[str, Any]) -> None:
        report = self.report
        difference, num_rows = find_difference(batch, expected)
        report.num_draws += 1
        report.num_rows += num_rows
        if difference is None:
            report.num_equal += 1
        elif report.difference is None:
            report.difference = f"batch {report.num_draws}: {difference}"

    @property
    def is_due(self) -> bool:
        """Whether there is nothing more to compare."""
        return self.is_over or self.report.num_draws >= self._draws

    def end(self, ours: Any, places: Mapping[str, Location | None]) -> ShadowReport:
        """Measure what both hold, and let go of RLinf's buffer.

        Args:
            ours: our buffer.
            places: where the files of each are, by name; None for nowhere.
        """
        with self._lock:
            costs = self.report.costs
            costs[OURS].memory_bytes = held_bytes(ours, without=[self])
            costs[THEIRS].memory_bytes = held_bytes(self._theirs)
            self._do(lambda one: one.close())
            self.is_over, self._theirs = True, None
            for name, place in places.items():
                costs[name].disk_bytes = _disk_bytes(place)
            return self.report


def _disk_bytes(place: Location | None) -> int | None:
    """Return the bytes of the files below a local folder; None for what is none."""
    if place is None or "://" in os.fspath(place) or not Path(place).is_dir():
        return None
    return sum(one.stat().st_size for one in Path(place).rglob("*") if one.is_file())


def shadow(
    buffer_class: type | str | None = None,
    *,
    draws: int = 100,
    ours: type[TrajectoryReplayBuffer] = TrajectoryReplayBuffer,
) -> type[TrajectoryReplayBuffer]:
    """Make a class that runs RLinf's buffer beside ours, compares, and goes on alone.

    Whoever uses it gets what ours does. Every call goes to both, and each of the first
    `draws` batches is compared bit for bit. Then, or at `close`, the log says how many
    were equal and what both cost in time, memory and disk; the report stays as the
    attribute `shadow_report`. What RLinf's buffer raises ends the comparison.

    With `auto_save`, and in `save_checkpoint`, RLinf's buffer writes to the same path
    with `.rlinf` at its end, or to a temporary directory where ours writes to a URL.

    Args:
        buffer_class: RLinf's `TrajectoryReplayBuffer`, or where it is as
            "module:name"; None to import it.
        draws: batches that are compared.
        ours: the class that goes on.

    Raises:
        InvalidInputError: if `draws` is no whole number above 0, or `buffer_class`
            names no class.
        NotFoundError: if there is no such class to import.
    """
    check_whole_number("draws", draws, minimum=1)
    theirs = find_buffer_class(buffer_class)
    values = {"_theirs_class": theirs, "_num_draws": draws}
    return type(f"Shadowed{ours.__name__}", (_Shadowing, ours), values)


def shadow_folder(
    path: Location,
    buffer_class: type | str | None = None,
    *,
    draws: int = 100,
    num_chunks: int = 256,
    sample_window_size: int = 100,
    cache_size: int = 5,
    enable_cache: bool = True,
    progress: Progress | None = None,
) -> ShadowReport:
    """Draw from a folder with RLinf's class, and from its conversion with ours.

    The conversion is made in a temporary directory and removed again.

    Args:
        path: a `pt` or `pkl` folder of RLinf's.
        buffer_class: RLinf's `TrajectoryReplayBuffer`, or where it is as
            "module:name"; None to import it.
        draws: batches that are compared.
        num_chunks: transitions of each.
        sample_window_size: as RLinf's, the newest trajectories; 0 for all.
        cache_size: as RLinf's.
        enable_cache: as RLinf's.
        progress: called with (steps done, steps in all): trajectories that are
            converted, then batches.

    Raises:
        InvalidInputError: if the path is no such folder, or an argument not allowed.
        NotFoundError: if there is no such class to import, or nothing at the path.
        FormatError: if the folder is damaged.
    """
    check_whole_number("draws", draws, minimum=1)
    theirs = find_buffer_class(buffer_class)
    found = format_at(open_storage(path))
    if found == "zarr":
        raise InvalidInputError(
            f"{path} is a zarr buffer; RLinf's class reads folders of pt and pkl files"
        )
    named: dict[str, Any] = {
        "sample_window_size": sample_window_size,
        "cache_size": cache_size,
        "enable_cache": enable_cache,
    }

    def report_first(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total + draws)

    def load_theirs() -> Any:
        one = theirs(**named, trajectory_format=found)
        one.load_checkpoint(os.fspath(path))
        return one

    with tempfile.TemporaryDirectory(prefix="zarrbuf-shadow-") as folder:
        converted = os.path.join(folder, "zarr")
        count = convert(path, converted, progress=report_first).num_trajectories
        ours = TrajectoryReplayBuffer(**named)
        ours.load_checkpoint(converted)
        pair = _Pair(load_theirs, draws=draws)
        while not pair.is_due:
            pair.draw(
                lambda: ours.sample(num_chunks),
                lambda one: one.sample(num_chunks=num_chunks),
            )
            if progress is not None:
                progress(count + pair.report.num_draws, count + draws)
        return pair.end(ours, {THEIRS: path, OURS: converted})


class _Shadowing(TrajectoryReplayBuffer):
    """In front of a class of ours: RLinf's buffer does the same, until it is compared.

    Attributes:
        shadow_report: what came of it, once it is over.
    """

    _theirs_class: type
    _num_draws: int
    shadow_report: ShadowReport | None = None
    _pair: _Pair | None = None
    _place: Location | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Take the arguments of `TrajectoryReplayBuffer`."""
        super().__init__(*arguments, **named)
        given = dict(_SIGNATURE.bind(*arguments, **named).arguments)
        if self.auto_save_path is not None:
            given["auto_save_path"] = self._place = _beside(self.auto_save_path)
        given["trajectory_format"] = "pkl" if self.trajectory_format == "pkl" else "pt"
        known = set(inspect.signature(self._theirs_class).parameters)
        some = {name: value for name, value in given.items() if name in known}
        self._pair = _Pair(lambda: self._theirs_class(**some), draws=self._num_draws)

    def _do(self, ours: Callable[[], Any], theirs: Callable[[Any], Any]) -> Any:
        return ours() if self._pair is None else self._pair.both(ours, theirs)

    def add_trajectories(self, trajectories: Sequence[Any]) -> None:
        """See `TrajectoryReplayBuffer`."""
        add = super().add_trajectories
        if self._pair is None:
            add(trajectories)
        else:
            self._pair.add(add, list(trajectories))

    def sample(self, num_chunks: int = 0, out: Any = None) -> dict[str, Any]:
        """See `TrajectoryReplayBuffer`."""
        draw = functools.partial(super().sample, num_chunks, out)
        pair = self._pair
        if pair is None:
            return draw()

        def theirs(one: Any) -> Any:
            one.sample_window_size = self.sample_window_size
            return one.sample(num_chunks=num_chunks)

        batch = pair.draw(draw, theirs)
        if pair.is_due:
            self._end()
        return batch

    sample_chunks = sample

    def load_checkpoint(self, load_path: Location, *more: Any, **named: Any) -> None:
        """See `TrajectoryReplayBuffer`."""
        known = {name: value for name, value in named.items() if name != "version"}

        def theirs(one: Any) -> None:
            one.load_checkpoint(os.fspath(load_path), *more, **known)
            self._align(one)  # ours goes on where it was saved, RLinf's at the seed

        self._do(
            functools.partial(super().load_checkpoint, load_path, *more, **named),
            theirs,
        )

    def save_checkpoint(self, save_path: Location) -> None:
        """See `TrajectoryReplayBuffer`."""
        self._do(
            functools.partial(super().save_checkpoint, save_path),
            lambda one: one.save_checkpoint(_beside(save_path)),
        )

    def manual_seed(self, seed: int | None) -> None:
        """See `TrajectoryReplayBuffer`."""
        self._do(functools.partial(super().manual_seed, seed), self._align)

    def _align(self, theirs: Any) -> None:
        theirs.random_generator.set_state(self.random_generator.get_state())

    def clear(self) -> None:
        """See `TrajectoryReplayBuffer`."""
        self._do(super().clear, lambda one: one.clear())

    def close(self, wait: bool = True) -> None:
        """See `TrajectoryReplayBuffer`; what was compared by now is reported."""
        if self._pair is not None:
            self._end()
        super().close(wait)

    def _end(self) -> None:
        pair, self._pair = self._pair, None
        if pair is None:  # of two threads, the other was first
            return
        self.flush()
        places = {THEIRS: self._place, OURS: self.auto_save_path}
        self.shadow_report = pair.end(self, places)
        _LOG.warning("%s", "\n".join(self.shadow_report.lines()))


def _beside(path: Location) -> str:
    """Return where RLinf's buffer writes while ours writes to a path."""
    name = os.fspath(path)
    if "://" in name:
        return tempfile.mkdtemp(prefix="zarrbuf-shadow-")
    return f"{name.rstrip('/')}.rlinf"

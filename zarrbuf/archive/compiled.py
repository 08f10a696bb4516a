"""Loops over many chunks, compiled to run without the interpreter lock. Optional.

A 50 KB frame decodes in 8 us; in a Python loop the interpreter takes half as much again
and a second thread waits for its lock more than it works. Compiled with numba (extra
`fast`), a loop calls c-blosc and crc32c itself, and two threads take little more than
half the time of one (`python -m benchmarks.profile`). Where numba or a function is
missing there are no loops, and `chunks` does the same in Python.

numba takes 60 MB and half a second, so that it is loaded when the first batch or
trajectory needs it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
from typing import Any, Final

import numpy as np

_LOG: Final = logging.getLogger("zarrbuf")
# Held while numba is loaded or compiles, and over every fork: a child that is forked in
# the middle would wait for ever for locks that a thread of its parent held.
_LOCK: Final = threading.RLock()
os.register_at_fork(
    before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
)


@functools.cache
def _loops() -> Any:
    """Return the module `loops`, or None where it cannot be used."""
    with _LOCK:
        try:
            loops = importlib.import_module("zarrbuf.archive.kernels")
        except (ImportError, OSError) as exc:  # not there, or not for this NumPy
            _LOG.info("chunks are decoded in Python, in one thread: %s", exc)
            return None
        return loops if loops.bind() else None


def have_loops() -> bool:
    """Whether the loops below can be called."""
    return _loops() is not None


@functools.cache
def compile_reading() -> None:
    """Compile the loops that batches need, once a process."""
    if not have_loops():
        return
    numbers, addresses = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    scratch = np.zeros(1, np.uint8)
    with _LOCK:
        _loops().decode_loop(
            *(addresses, addresses, numbers, addresses),
            *(numbers, numbers, scratch, numbers),
        )
        _loops().scatter_loop(
            addresses, 1, numbers, numbers, numbers, addresses, scratch
        )


@functools.cache
def compile_writing() -> None:
    """Compile the loop that trajectories need, once a process."""
    name = np.frombuffer(b"lz4\0", np.uint8)
    numbers, addresses = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    with _LOCK:
        _loops().encode_loop(
            addresses, 1, 1, 0, 1, name, np.zeros(0, np.uint8), numbers
        )


def decode_loop(*arguments: Any) -> None:
    """Check and decode chunks, see `loops.decode_loop`."""
    compile_reading()
    _loops().decode_loop(*arguments)


def encode_loop(*arguments: Any) -> int:
    """Compress blocks of memory, see `loops.encode_loop`."""
    compile_writing()
    done: int = _loops().encode_loop(*arguments)
    return done


def scatter_loop(*arguments: Any) -> None:
    """Copy fields of packed rows, see `loops.scatter_loop`."""
    compile_reading()
    _loops().scatter_loop(*arguments)

"""How much memory the tensors, arrays and bytes take that an object refers to.

Follows references as the garbage collector does; counts what is shared once, and no
file that is mapped.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator, Sequence
from types import FrameType, FunctionType, ModuleType
from typing import Any, Final

import numpy as np
import torch

_NOT_FOLLOWED: Final = (
    *(type, ModuleType, FunctionType, FrameType),
    *(logging.Logger, threading.Thread),
)


def held_bytes(root: Any, *, without: Sequence[Any] = ()) -> int:
    """Return the bytes of all tensors, arrays and bytes objects below an object.

    Args:
        root: the object.
        without: objects that are not followed.
    """
    seen, known = {id(one) for one in without}, set[int]()
    total = 0
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, _NOT_FOLLOWED):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor | np.ndarray | bytes | bytearray | memoryview):
            for key, num_bytes in _memory(one):
                total += 0 if key in known else num_bytes
                known.add(key)
        else:
            waiting += gc.get_referents(one)
    return total


def _memory(value: Any) -> Iterator[tuple[int, int]]:
    """Yield the memory of a value, if it is its own: where it is, and its bytes."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()
        return
    if isinstance(value, memoryview):
        value = value.obj
    while isinstance(value, np.ndarray) and value.base is not None:
        value = value.base  # pages of a file end at an object of another kind
    if isinstance(value, np.ndarray):
        yield value.__array_interface__["data"][0], value.nbytes
    elif isinstance(value, bytes | bytearray):
        yield id(value), len(value)

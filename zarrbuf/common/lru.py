"""What was used last, within bounds of cost and number. Pure."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """What was used last, bounded in cost and number; safe between threads.

    Attributes:
        cost: of all that is kept.
        num_dropped: items that were forgotten, or not even kept, so far.
    """

    def __init__(self, *, max_cost: int, max_items: int) -> None:
        """Keep at most `max_items` items, of `max_cost` together."""
        self._max_cost = max_cost
        self._max_items = max_items
        self._items: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self.make_lock()
        self.cost = 0
        self.num_dropped = 0

    def make_lock(self) -> None:
        """Start with a lock that nobody holds."""
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        """Return an item and mark it as used, or None."""
        return self.get_all([key])[0]

    def get_all(self, keys: Sequence[Key]) -> list[Value | None]:
        """Return items and mark them as used, None for those not kept."""
        found: list[Value | None] = []
        items = self._items
        with self._lock:
            for key in keys:
                item = items.get(key)
                if item is None:
                    found.append(None)
                else:
                    items.move_to_end(key)
                    found.append(item[0])
        return found

    def put(self, key: Key, value: Value, *, cost: int) -> None:
        """Keep an item, unless it alone is beyond the bound; the oldest used go."""
        with self._lock:
            self._drop(key)
            if cost > self._max_cost:
                self.num_dropped += 1
                return
            self._items[key] = (value, cost)
            self.cost += cost
            while self.cost > self._max_cost or len(self._items) > self._max_items:
                self._drop(next(iter(self._items)))

    def discard(self, key: Key) -> None:
        """Forget an item if it is there."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        item = self._items.pop(key, None)
        if item is not None:
            self.cost -= item[1]
            self.num_dropped += 1

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self.num_dropped += len(self._items)
            self._items.clear()
            self.cost = 0

    def __len__(self) -> int:
        """Return the number of items kept."""
        return len(self._items)

"""The cache keeps what was used last, within bounds of cost and number."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from zarrbuf.common.lru import LruCache


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=40),
    st.integers(0, 8),
    st.integers(1, 4),
)
def test_the_cache_keeps_what_was_used_last_within_its_bounds(
    puts: list[tuple[int, int]], max_cost: int, max_items: int
) -> None:
    cache: LruCache[str, int] = LruCache(max_cost=max_cost, max_items=max_items)
    model: dict[str, int] = {}
    for number, (key, cost) in enumerate(puts):
        name = str(key)
        model.pop(name, None)
        if cost <= max_cost:
            model[name] = cost
        while sum(model.values()) > max_cost or len(model) > max_items:
            del model[next(iter(model))]
        cache.put(name, number, cost=cost)
        used = str((key + 1) % 6)
        assert (cache.get(used) is not None) == (used in model)
        if used in model:
            model[used] = model.pop(used)
        assert cache.cost == sum(model.values()) <= max_cost
        assert len(cache) == len(model) <= max_items
    for key in range(6):
        assert (cache.get(str(key)) is None) == (str(key) not in model)


def test_discarding_and_clearing_give_the_room_back() -> None:
    cache: LruCache[str, str] = LruCache(max_cost=10, max_items=5)
    cache.put("a", "x", cost=4)
    cache.put("b", "y", cost=5)
    cache.discard("a")
    cache.discard("never there")
    assert (cache.cost, cache.get("a"), cache.get("b")) == (5, None, "y")
    cache.clear()
    assert (cache.cost, len(cache)) == (0, 0)


@given(
    st.lists(st.integers(0, 5), max_size=8),
    st.lists(st.integers(0, 7), max_size=12),
    st.integers(1, 4),
)
def test_several_at_once_are_what_they_are_one_by_one(
    puts: list[int], wanted: list[int], max_items: int
) -> None:
    one, all_at_once = (
        LruCache[int, str](max_cost=100, max_items=max_items) for _ in range(2)
    )
    for key in puts:
        one.put(key, f"value {key}", cost=1)
        all_at_once.put(key, f"value {key}", cost=1)
    assert all_at_once.get_all(wanted) == [one.get(key) for key in wanted]
    # Both have marked the same ones as used: the same ones go when room is needed.
    for number in range(max_items):
        one.put(100 + number, "new", cost=1)
        all_at_once.put(100 + number, "new", cost=1)
        assert one.get_all(range(6)) == all_at_once.get_all(range(6))


def test_an_item_beyond_the_bound_is_not_kept_and_its_old_value_goes() -> None:
    cache: LruCache[str, int] = LruCache(max_cost=10, max_items=5)
    cache.put("a", 1, cost=4)
    cache.put("a", 2, cost=11)
    assert (cache.get("a"), cache.cost, len(cache)) == (None, 0, 0)


def test_threads_leave_the_cost_right() -> None:
    cache: LruCache[int, int] = LruCache(max_cost=50, max_items=20)
    failures: list[Exception] = []

    def use(seed: int) -> None:
        try:
            for number in range(2000):
                key = (number * 7 + seed) % 40
                cache.put(key, key, cost=key % 7)
                assert cache.get_all([key, key + 1])[1] in (None, key + 1)
                if number % 5 == 0:
                    cache.discard(key)
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    kept = [key for key in range(41) if cache.get(key) is not None]
    assert cache.cost == sum(key % 7 for key in kept) <= 50
    assert len(cache) == len(kept) <= 20


def test_a_lock_that_is_held_for_ever_can_be_replaced() -> None:
    cache: LruCache[str, int] = LruCache(max_cost=10, max_items=5)
    cache.put("a", 1, cost=1)
    assert cache._lock.acquire()
    cache.make_lock()
    assert cache.get("a") == 1

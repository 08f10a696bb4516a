"""The safe unpickler: what torch writes comes back bit by bit, nothing else does."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import pickle_parts as parts
from attacks.pickles import ATTACKS
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import DATA

from zarrbuf.errors import FormatError
from zarrbuf.rlinf.safe_pickle.allowlist import _TABLE, parse_pickle
from zarrbuf.rlinf.safe_pickle.machine import PickleLimits
from zarrbuf.trajectory.plain_values import NUMPY_SCALARS

PICKLES = DATA / "rlinf_pkl"
PROTOCOLS = (2, 3, 4, 5)
OLD_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.complex64,
    torch.complex128,
)
# torch writes these to a pickle but cannot read them back from one.
NEW_DTYPES = (
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)


def parse(data: bytes, **limits: int) -> dict[str, Any]:
    return parse_pickle(data, name="t.pkl", limits=PickleLimits(**limits))


def bits(tensor: torch.Tensor) -> bytes:
    packed = torch.empty(tensor.shape, dtype=tensor.dtype)
    packed.copy_(tensor.detach())
    return packed.reshape(-1).view(torch.uint8).numpy().tobytes()


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Any:
    """Random bits: every NaN payload and signed zero occurs."""
    count = math.prod(shape) * dtype.itemsize
    high = 2 if dtype is torch.bool else 256
    raw = np.random.default_rng(seed).integers(0, high, count, dtype=np.uint8)
    made = torch.empty(shape, dtype=dtype)
    if count:
        made.reshape(-1).view(torch.uint8).copy_(torch.from_numpy(raw))
    return made


def assert_same(got: Any, wanted: Any) -> None:
    if isinstance(wanted, torch.Tensor):
        assert type(got) is torch.Tensor
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        assert got.device.type == "cpu"
        assert got.is_contiguous()
        assert not got.requires_grad
        assert bits(got) == bits(wanted)
    elif isinstance(wanted, dict):
        assert type(got) is dict
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert type(got) is type(wanted)
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    else:
        assert type(got) is type(wanted)
        assert got == wanted or (got != got and wanted != wanted)


class TestRoundTrip:
    @pytest.mark.parametrize("trajectory_id", range(3))
    def test_files_of_rlinf(self, trajectory_id: int) -> None:
        (path,) = PICKLES.glob(f"trajectory_{trajectory_id}_*.pkl")
        data = path.read_bytes()
        wanted = pickle.loads(data)  # our own fixture, trusted
        assert len(wanted) == 14
        assert_same(parse(data), wanted)

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    @pytest.mark.parametrize("dtype", OLD_DTYPES + NEW_DTYPES, ids=str)
    def test_every_dtype(self, dtype: torch.dtype, protocol: int) -> None:
        source = random_tensor(dtype, (3, 4, 2), seed=1)
        wanted = {
            "whole": source,
            "view": source[1:, ::2].transpose(0, 2),
            "one": source[2, 3, 1],
            "none": source[:, :0],
            "wide": source[:1, :1, :1].expand(5, 1, 6),
        }
        assert_same(parse(pickle.dumps(wanted, protocol)), wanted)

    @settings(max_examples=300, deadline=None)
    @given(
        dtype=st.sampled_from(OLD_DTYPES + NEW_DTYPES),
        shape=st.lists(st.integers(0, 5), max_size=5).map(tuple),
        cut=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=5),
        order=st.randoms(use_true_random=False),
        seed=st.integers(0, 1 << 30),
        protocol=st.sampled_from(PROTOCOLS),
    )
    def test_views_of_any_stride(
        self,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        cut: list[tuple[int, int]],
        order: random.Random,
        seed: int,
        protocol: int,
    ) -> None:
        whole = random_tensor(dtype, shape, seed)
        spans = [slice(start, None, step) for start, step in cut[: len(shape)]]
        view = whole[tuple(spans)]
        axes = list(range(view.dim()))
        order.shuffle(axes)
        wanted = {"view": view.permute(axes), "shared": [whole, (whole,)], "n": 1}
        assert_same(parse(pickle.dumps(wanted, protocol)), wanted)

    @settings(max_examples=200, deadline=None)
    @given(
        tree=st.dictionaries(
            st.text(max_size=8),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers(-(1 << 70), 1 << 70)
                | st.floats()
                | st.text(max_size=300),
                lambda inner: (
                    st.lists(inner, max_size=4)
                    | st.lists(inner, max_size=4).map(tuple)
                    | st.dictionaries(
                        st.text(max_size=4) | st.integers(-(1 << 31), (1 << 31) - 1),
                        inner,
                        max_size=4,
                    )
                ),
                max_leaves=12,
            ),
            max_size=6,
        ),
        protocol=st.sampled_from(PROTOCOLS),
    )
    def test_plain_values(self, tree: dict[str, Any], protocol: int) -> None:
        assert_same(parse(pickle.dumps(tree, protocol)), tree)

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_bytes_and_numpy_numbers(self, protocol: int) -> None:
        raw = np.random.default_rng(4).bytes(16)
        numbers = [np.frombuffer(raw, kind)[0] for kind in NUMPY_SCALARS[1:]]
        wanted = {"a": [*numbers, np.True_, np.False_], "b": (b"", b"\xff\x00", raw)}
        wanted["again"] = [numbers[0], wanted["b"]]  # from the memo
        assert_same(parse(pickle.dumps(wanted, protocol)), wanted)

    def test_numpy_numbers_of_numpy_1(self) -> None:
        data = pickle.dumps({"a": np.float32(1.5)}, 2)
        old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        assert old != data
        assert_same(parse(old), {"a": np.float32(1.5)})

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_long_payloads_and_many_values(self, protocol: int) -> None:
        wanted = {
            "frames": random_tensor(torch.uint8, (3, 700_001), seed=2),
            "noise": random_tensor(torch.bfloat16, (400_003,), seed=3),
            "steps": list(range(5000)),
            "task": "pick " * 20_000,
        }
        assert_same(parse(pickle.dumps(wanted, protocol)), wanted)

    @pytest.mark.parametrize("kind", [bytes, memoryview, bytearray])
    def test_result_owns_writable_memory(self, kind: Any) -> None:
        data = pickle.dumps(parts.small())
        mutable = bytearray(data)
        source = memoryview(mutable) if kind is memoryview else kind(mutable)
        result = parse_pickle(source, name="t.pkl")
        mutable[:] = bytes(len(mutable))
        result["rewards"] += 1
        assert_same(result["rewards"], parts.small()["rewards"] + 1)
        result["curr_obs"]["main_images"].share_memory_()
        assert_same(result["curr_obs"], parts.small()["curr_obs"])

    def test_gradient_is_left_behind(self) -> None:
        leaf = torch.ones(3, requires_grad=True)
        result = parse(pickle.dumps({"leaf": leaf, "node": leaf * 2}))
        assert_same(result, {"leaf": torch.ones(3), "node": torch.full((3,), 2.0)})

    def test_ordered_dict_comes_back_as_dict(self) -> None:
        wanted = {"obs": OrderedDict(b=1, a=torch.zeros(2))}
        assert_same(parse(pickle.dumps(wanted)), {"obs": dict(wanted["obs"])})

    def test_assembled_parts_are_valid(self) -> None:
        """The attacks change one thing in this, so it must pass unchanged."""
        data = parts.value(parts.tensor())
        assert_same(parse(data), pickle.loads(data))

    @pytest.mark.parametrize(
        "value",
        [
            torch.nn.Parameter(torch.zeros(2)),
            torch.zeros(2, dtype=torch.complex64).conj(),
            torch.zeros(2, 2).to_sparse(),
            torch.zeros(2, device="meta"),
            torch.Size((1, 2)),
            torch.float32,
            np.zeros(2),
            np.longdouble(1),
            np.str_("a"),
            np.datetime64(1, "s"),
            np.dtype("f4"),
            Path("a"),
            {1, 2},
            b"a" * (1 << 20) + b"a",
            bytearray(b"a"),
            1j,
            range(3),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_other_values_are_refused(self, value: Any) -> None:
        for protocol in PROTOCOLS:
            with pytest.raises(FormatError, match=r"'t\.pkl'"):
                parse(pickle.dumps({"a": value}, protocol))


class TestAttacks:
    @pytest.mark.parametrize("label", sorted(ATTACKS))
    def test_refused(self, label: str, tmp_path: Path) -> None:
        sentinel = tmp_path / "ran"
        data = ATTACKS[label](f"touch {sentinel}")
        with pytest.raises(FormatError) as caught:
            parse(data)
        assert not sentinel.exists()
        message = str(caught.value)
        assert message.startswith("'t.pkl' is not a pickle zarrbuf reads: ")
        assert message.isprintable()
        assert len(message) < 400
        assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
        assert "this" not in sys.modules

    @pytest.mark.parametrize(
        "label", ["reduce_system", "inst", "obj", "system_call_in_main"]
    )
    @pytest.mark.filterwarnings("ignore")
    def test_attacks_are_real(self, label: str, tmp_path: Path) -> None:
        """The same bytes do run in `pickle.loads`, else the tests above mean little."""
        sentinel = tmp_path / "ran"
        data = ATTACKS[label](f"touch {sentinel}")
        with contextlib.suppress(Exception):
            pickle.loads(data)
        assert sentinel.exists()

    def test_memory_stays_bounded(self, tmp_path: Path) -> None:
        """All attacks in one process: the peak grows by less than 256 MiB."""
        code = (
            "import resource\n"
            "from attacks.pickles import ATTACKS\n"
            "from zarrbuf.errors import FormatError\n"
            "from zarrbuf.rlinf.safe_pickle.allowlist import parse_pickle\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "before = peak()\n"
            "for build in ATTACKS.values():\n"
            "    try:\n"
            "        parse_pickle(build('false'), name='x')\n"
            "    except FormatError:\n"
            "        continue\n"
            "    raise SystemExit('accepted')\n"
            "print((peak() - before) // 1024)\n"
        )
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) < 256

    @pytest.mark.parametrize(
        ("budget", "rule"),
        [
            ({"max_nodes": 100}, "more than 100 opcodes"),
            ({"max_depth": 1}, "nested deeper than 1"),
            ({"max_memo": 10}, "memo index is not below 10"),
            ({"max_text_bytes": 2}, "string is longer"),
            ({"max_bytes": 8}, "more memory"),
        ],
    )
    def test_every_budget_holds(self, budget: dict[str, int], rule: str) -> None:
        value = {"a": 0, "b": [["ccc"] * 20], "d": torch.zeros(100)}
        if "max_text_bytes" in budget:
            value = {"a": "ccc"}
        data = pickle.dumps(value)
        parse(data)
        with pytest.raises(FormatError, match=rule):
            parse(data, **budget)

    def test_expanding_is_allowed_up_to_the_spare(self) -> None:
        data = pickle.dumps({"a": torch.zeros(1).expand(1000)})
        spare = 4000 - 2 * len(data)
        assert parse(data, spare_bytes=spare)["a"].shape == (1000,)
        with pytest.raises(FormatError, match="more memory"):
            parse(data, spare_bytes=spare - 1)

    def test_nothing_can_be_set_on_what_may_be_called(self) -> None:
        for value in _TABLE.values():
            for attribute in ("__kwdefaults__", "__call__", "anything"):
                with pytest.raises((AttributeError, TypeError)):
                    setattr(value, attribute, None)

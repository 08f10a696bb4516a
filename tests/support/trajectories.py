"""Trajectories to test with: a realistic one, and a strategy that draws odd ones."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from zarrbuf.archive.spec import STORED_DTYPE, AnyArray
from zarrbuf.archive.zip_file import encode_zip, parse_zip
from zarrbuf.common.uuids import new_uuid
from zarrbuf.manifest.rows import Row
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.object_store import ObjectStorage
from zarrbuf.storage.resolve import open_storage
from zarrbuf.trajectory.encoding import encode_trajectory
from zarrbuf.trajectory.trajectory import Trajectory

Tensor = torch.Tensor
UUID = "0123456789abcdef0123456789abcdef"
DTYPES = tuple(getattr(torch, name) for name in STORED_DTYPE)
ODD_KEYS = (
    "main_images",
    "..",
    ".",
    "__x",
    "a/b",
    "ü",
    "%41",
    "A",
    "zarr.json",
    "c",
    " two words ",
    "\x00\n",
    "~",
)
SAMPLE_SHAPES = ((), (1,), (3,), (2, 3), (0,), (2, 0), (1, 1, 1, 2))
LAYOUTS = ("dense", "dense", "permuted", "strided", "expanded", "offset")


class MemoryStorage(ObjectStorage):
    """A storage in memory that is asked for one object after the other, to count."""

    def __init__(self, url: str) -> None:
        vars(self).update(vars(open_storage(url)))

    read_existing = Storage.read_existing
    create_all = Storage.create_all


def make_row(trajectory_id: int, **changes: Any) -> Row:
    """Return a row of a trajectory that is nowhere; its uuid is new."""
    row = Row(
        uuid=new_uuid(),
        trajectory_id=trajectory_id,
        model_weights_id="w",
        num_steps=4,
        num_envs=2,
        shape=(4, 2, 1),
        max_episode_length=50,
        size=10,
        crc=1,
        schema="00" * 7 + "01",
    )
    return dataclasses.replace(row, **changes)


def stored(tensor: Tensor) -> AnyArray:
    """Return a tensor's bits as the dtype that the format stores."""
    name = str(tensor.dtype).removeprefix("torch.")
    dense = tensor.detach().clone(memory_format=torch.contiguous_format)
    raw: AnyArray = dense.view(getattr(torch, STORED_DTYPE[name])).numpy()
    return raw


def random_bits(
    shape: tuple[int, ...], dtype: torch.dtype, rng: np.random.Generator
) -> Tensor:
    """Return a dense tensor of random bits, so NaNs of every kind among floats."""
    if dtype is torch.bool:
        return torch.from_numpy(np.asarray(rng.integers(0, 2, shape), bool))
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty(shape, dtype=dtype)
    raw = rng.integers(0, 256, size, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def random_layout(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, rng: np.random.Generator
) -> Tensor:
    """Return a tensor of random bits that lies in memory as `layout` says."""
    if not shape or layout == "dense":
        return random_bits(shape, dtype, rng)
    if layout == "permuted":
        axes = tuple(reversed(range(len(shape))))
        return random_bits(shape[::-1], dtype, rng).permute(axes)
    if layout == "strided":
        return random_bits((*shape[:-1], 2 * shape[-1]), dtype, rng)[..., ::2]
    if layout == "expanded":
        return random_bits((1, *shape[1:]), dtype, rng).expand(shape)
    return random_bits((shape[0] + 1, *shape[1:]), dtype, rng)[1:]


def make_trajectory(
    num_steps: int,
    num_envs: int,
    *,
    seed: int = 0,
    image_size: int = 40,
    state_dim: int = 5,
    action_dim: int = 3,
    extra_epochs: int = 1,
    reset_every: int = 4,
    image_dtype: torch.dtype = torch.uint8,
    state_dtype: torch.dtype = torch.float32,
    with_next: bool = True,
    **changes: Any,
) -> Trajectory:
    """Return a trajectory as a simulator with auto-reset gives it.

    The next observation at t is the current one at t + 1, but where an episode ends
    (every `reset_every` steps): there it is the final one, of no other step.

    Args:
        num_steps: `T`.
        num_envs: `B`.
        seed: of everything random.
        image_size: height and width; 40 x 40 x 3 bytes make a big field.
        state_dim: numbers of a state.
        action_dim: numbers of an action.
        extra_epochs: `E`, extra rows of `dones` and of `prev_values`.
        reset_every: steps of an episode.
        image_dtype: dtype of images.
        state_dtype: dtype of states.
        with_next: whether there are next observations.
        **changes: fields set afterwards.
    """
    rng = np.random.default_rng(seed)
    lead = (num_steps, num_envs)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    def observations(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        all_steps = random_bits((num_steps + 1, num_envs, *shape), dtype, rng)
        following = all_steps[1:].clone()
        final = slice(reset_every - 1, None, reset_every)
        following[final] = random_bits(tuple(following[final].shape), dtype, rng)
        return all_steps[:-1].clone(), following

    images = observations(image_size, image_size, 3, dtype=image_dtype)
    states = observations(state_dim, dtype=state_dtype)
    stages = [
        {
            "main_images": image,
            "states": state,
            "task_descriptions": ["pick", "lift"],
        }
        for image, state in zip(images, states, strict=True)
    ]
    dones = torch.zeros(num_steps + extra_epochs, num_envs, dtype=torch.bool)
    dones[reset_every::reset_every] = True
    trajectory = Trajectory(
        max_episode_length=reset_every,
        model_weights_id=f"{UUID}_{seed}",
        actions=normal(*lead, action_dim),
        intervene_flags=torch.from_numpy(rng.integers(0, 2, lead) > 0),
        rewards=normal(*lead),
        terminations=dones.clone(),
        truncations=torch.zeros_like(dones),
        dones=dones,
        prev_logprobs=normal(*lead, action_dim),
        prev_values=normal(num_steps + extra_epochs, num_envs, 1),
        versions=torch.full(lead, 7, dtype=torch.int64),
        forward_inputs={
            "hidden": normal(*lead, 6).to(torch.bfloat16),
            "nested": {"mask": torch.ones(*lead, 2, dtype=torch.bool), "note": None},
            "temperature": torch.tensor(0.5),
        },
        curr_obs=stages[0],
        next_obs=stages[1] if with_next else {},
    )
    for name, value in changes.items():
        setattr(trajectory, name, value)
    return trajectory


def json_values() -> st.SearchStrategy[Any]:
    """Values that are no tensors and can be stored."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8)
    )
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(st.dictionaries(st.text(max_size=3), inner, max_size=2))
        ),
        max_leaves=5,
    )


def keys() -> st.SearchStrategy[str]:
    """Names in a dict, most of them hard to be a name of anything else."""
    return st.sampled_from(ODD_KEYS) | st.text(min_size=1, max_size=5)


@st.composite
def steps(draw: st.DrawFn, lead: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Draw a tensor `[T, B, ...]`; with big rows some of them are equal."""
    if draw(st.integers(0, 5)) == 0:
        dtype = draw(st.sampled_from((torch.uint8, torch.bfloat16, torch.float64)))
        pool = random_bits((3, 1, 4099 // dtype.itemsize + 1), dtype, rng)
        return pool[torch.from_numpy(rng.integers(0, 3, lead))]
    shape = (*lead, *draw(st.sampled_from(SAMPLE_SHAPES)))
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUTS))
    return random_layout(shape, dtype, layout, rng)


@st.composite
def trees(
    draw: st.DrawFn, lead: tuple[int, int], rng: np.random.Generator, depth: int = 2
) -> dict[str, Any]:
    """Draw a dict of tensors, other values and, down to `depth`, more dicts."""
    low = st.sampled_from(DTYPES).flatmap(
        lambda dtype: st.sampled_from(((), (0,), (3,))).map(
            lambda shape: random_bits(shape, dtype, rng)
        )
    )
    values = steps(lead, rng) | low | json_values()
    if depth:
        values |= trees(lead, rng, depth - 1)
    return draw(st.dictionaries(keys(), values, max_size=3))


def _shifted(value: Any, rng: np.random.Generator, kind: str) -> Any:
    """Return a next observation that fits a current one as `kind` says."""
    if isinstance(value, dict):
        return {key: _shifted(item, rng, kind) for key, item in value.items()}
    if not isinstance(value, torch.Tensor) or value.ndim < 2:
        return value
    if kind == "other shape":
        return value[..., None]
    following = value.clone()
    following[:-1] = value[1:]
    if kind == "resets":
        step = int(rng.integers(0, len(value)))
        row = random_bits(tuple(value.shape[1:]), value.dtype, rng)
        following[step] = row
    return following


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """Draw a small trajectory: every dtype, odd keys, ragged T and B, odd layouts."""
    num_epochs = draw(st.integers(1, 3))
    num_steps = num_epochs * draw(st.integers(1, 3))
    lead = (num_steps, draw(st.integers(1, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    extra = (num_steps + num_epochs, lead[1])
    curr = draw(trees(lead, rng))
    kind = draw(st.sampled_from(("none", "same", "resets", "other shape", "other")))
    following = {"none": {}, "other": draw(trees(lead, rng))}.get(kind)
    if following is None:
        following = _shifted(curr, rng, kind)
    maybe = st.booleans()
    return Trajectory(
        max_episode_length=draw(st.integers(0, 1000)),
        model_weights_id=draw(st.sampled_from(("", "x_1", "ü y"))),
        actions=draw(steps(lead, rng)),
        rewards=draw(steps(lead, rng)) if draw(maybe) else None,
        prev_logprobs=draw(steps(lead, rng)) if draw(maybe) else None,
        versions=random_bits((3,), torch.int64, rng) if draw(maybe) else None,
        dones=draw(steps(extra, rng)) if draw(maybe) else None,
        prev_values=draw(steps(extra, rng)) if draw(maybe) else None,
        terminations=draw(steps(lead, rng)) if draw(maybe) else None,
        forward_inputs=draw(trees(lead, rng)),
        curr_obs=curr,
        next_obs=following,
    )


def assert_same_value(a: Any, b: Any, name: str) -> None:
    """Assert that two values are equal to the last bit, NaNs and types included."""
    assert type(a) is type(b), name
    if isinstance(a, dict):
        assert set(a) == set(b), name
        for key in a:
            assert_same_value(a[key], b[key], f"{name}[{key!r}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert stored(a).tobytes() == stored(b).tobytes(), name
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), name
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same_value(one, other, f"{name}[{number}]")
    elif isinstance(a, float | np.generic):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name
    else:
        assert a == b, name


def assert_same_trajectory(a: Any, b: Any) -> None:
    """Assert that two trajectories are equal to the last bit."""
    for field in fields(Trajectory):
        assert_same_value(getattr(a, field.name), getattr(b, field.name), field.name)


def small_archive() -> bytes:
    """Return a small archive with a field of every kind."""
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 9, (4, 2, 1), dtype=np.uint8), 4096, axis=2)
    curr = {
        "image": torch.from_numpy(images[:-1].copy()),
        "time": torch.tensor(1.5, dtype=torch.bfloat16),
        "none": torch.zeros(3, 2, 0),
        "task": ["pick"],
    }
    following = {**curr, "image": torch.from_numpy(images[1:].copy())}
    dones = torch.zeros(4, 2, dtype=torch.bool)
    rewards = torch.arange(6.0).reshape(3, 2)
    trajectory = Trajectory(
        rewards=rewards, dones=dones, curr_obs=curr, next_obs=following
    )
    return encode_trajectory(trajectory, uuid=UUID, codec="lz4").data


def contents_of(data: bytes) -> dict[str, bytes]:
    """Return the members of a zip, in file order."""
    members = parse_zip(memoryview(data), name="x")
    return {name: data[m.start : m.stop] for name, m in members.items()}


def rezip(contents: dict[str, bytes]) -> bytes:
    """Return a zip of members, so with checksums that are right."""
    return encode_zip([(name, [data]) for name, data in contents.items()])

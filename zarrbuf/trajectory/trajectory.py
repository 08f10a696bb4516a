"""The `Trajectory` of tensors, and how it is read from an archive.

With `encoding` the one place between torch and the torch-free format; no I/O.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import torch

from zarrbuf.archive.spec import (
    DICT_FIELDS,
    STORED_DTYPE,
    TENSOR_FIELDS,
    AnyArray,
    batch_fields,
    decode_key,
    is_own_name,
    is_staged,
    step_rows,
)
from zarrbuf.errors import FormatError
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.interventions import extract_interventions
from zarrbuf.trajectory.plain_values import from_json

Tensor = torch.Tensor
KNOWN_FIELDS: Final = frozenset(
    {"max_episode_length", "model_weights_id", *TENSOR_FIELDS, *DICT_FIELDS}
)
"""Those of RLinf's trajectories."""


@dataclass(repr=False)
class Trajectory:
    """One record of experience, `T` steps of `B` environments.

    The fields are those of RLinf's dataclass of the same name; any object with these
    attributes is accepted wherever a trajectory is.

    Attributes:
        max_episode_length: steps after which an episode is cut; None if not told.
        model_weights_id: the policy that drove it, `{uuid}_{update}` or `{uuid}`.
        actions: [T, B, A].
        intervene_flags: bool [T, B, ...], where a person took over.
        rewards: [T, B, ...].
        terminations: bool [T + E, B, ...]; one extra row may stand at the start of
            each of `E` rollout epochs.
        truncations: like `terminations`.
        dones: like `terminations`.
        prev_logprobs: [T, B, ...].
        prev_values: [T + E, B, ...]; the extra row stands at the end of each epoch.
        versions: [T, B, ...].
        forward_inputs: tensors [T, B, ...] by name, may be nested.
        curr_obs: observations before each step: `main_images` uint8
            [T, B, H, W, C], `states` [T, B, D], ...
        next_obs: observations after each step.
    """

    max_episode_length: int | None = 0
    model_weights_id: str = ""
    actions: Tensor | None = None
    intervene_flags: Tensor | None = None
    rewards: Tensor | None = None
    terminations: Tensor | None = None
    truncations: Tensor | None = None
    dones: Tensor | None = None
    prev_logprobs: Tensor | None = None
    prev_values: Tensor | None = None
    versions: Tensor | None = None
    forward_inputs: dict[str, Any] = field(default_factory=dict)
    curr_obs: dict[str, Any] = field(default_factory=dict)
    next_obs: dict[str, Any] = field(default_factory=dict)

    def extract_intervene_traj(self, mode: str = "any") -> list[Trajectory] | None:
        """Return the steps in which a person took over, a trajectory an environment.

        Args:
            mode: "any" for the steps of which any number of the action is a person's,
                "all" for those of which all are.

        Returns:
            Trajectories [k, 1, ...]; None if there is no such step.

        Raises:
            InvalidInputError: if the mode is not known, or `intervene_flags` is not
                [T, B, A].
        """
        return extract_interventions(self, mode)

    def __repr__(self) -> str:
        """Return what there is and its shapes, not the numbers."""
        parts = [
            f"{name}={_describe(value)}"
            for name, value in fields_of(self).items()
            if not _is_absent(value)
        ]
        return f"{type(self).__name__}({', '.join(parts)})"


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping | str) and not value)


def _describe(value: Any) -> str:
    """Return the dtype and shape of a tensor, of each in a dict; others as they are."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        inner = (f"{key}: {_describe(one)}" for key, one in value.items())
        return f"{{{', '.join(inner)}}}"
    return repr(value)


def to_tensor(array: AnyArray, dtype: str) -> Tensor:
    """View a stored array as a tensor of torch dtype `dtype`, without a copy."""
    tensor = torch.from_numpy(array)
    return (
        tensor if STORED_DTYPE[dtype] == dtype else tensor.view(getattr(torch, dtype))
    )


def decode_trajectory(archive: TrajectoryArchive) -> Trajectory:
    """Read a whole trajectory, every tensor as it was given.

    Raises:
        FormatError: if the archive is damaged.
    """
    header = archive.header
    return assemble(
        _stored_tensors(archive),
        header.non_tensor,
        max_episode_length=header.max_episode_length,
        model_weights_id=header.model_weights_id,
        name=archive.name,
    )


def assemble(
    tensors: Iterable[tuple[str, Tensor]],
    non_tensor: Mapping[str, Any],
    *,
    max_episode_length: int | None,
    model_weights_id: str,
    name: str,
) -> Trajectory:
    """Make a trajectory of tensors by field path and values that are no tensors.

    Raises:
        FormatError: if two of them claim one name, or the values are not what is
            stored; `name` says of what.
    """
    tree: dict[str, Any] = {}
    for field_name in DICT_FIELDS:
        if field_name in non_tensor:
            tree[field_name] = _decode_plain(non_tensor, field_name, name)
    for path, tensor in tensors:
        if not _put(tree, path, tensor):
            raise FormatError(f"{name}: two values claim the name {path!r}")
    return make_trajectory(
        {
            "max_episode_length": max_episode_length,
            "model_weights_id": model_weights_id,
            **tree,
        }
    )


def _decode_plain(non_tensor: Mapping[str, Any], field_name: str, name: str) -> Any:
    try:
        values = from_json(non_tensor[field_name])
    except ValueError as exc:
        raise FormatError(f"{name}: {field_name}: {exc}") from exc
    if not isinstance(values, dict):
        raise FormatError(f"{name}: {field_name} is no dict")
    return values


def make_trajectory(values: Mapping[str, Any]) -> Trajectory:
    """Make a trajectory of its fields by name; others than RLinf's are attributes.

    Raises:
        FormatError: if one has a name that means something else.
    """
    known = {name: values[name] for name in KNOWN_FIELDS & set(values)}
    trajectory = Trajectory(**known)
    for name in sorted(set(values) - KNOWN_FIELDS):
        if not is_own_name(name) or hasattr(trajectory, name):
            raise FormatError(f"a trajectory has no field {name!r:.80}")
        setattr(trajectory, name, values[name])
    return trajectory


def fields_of(trajectory: Any) -> dict[str, Any]:
    """Return the fields of a trajectory by name, those that RLinf's do not have too.

    Of objects that are no dataclasses, those that RLinf's trajectories have.
    """
    kind: Any = type(trajectory)
    names = list(_names_of(kind))
    if isinstance(trajectory, Trajectory):
        names += [name for name in vars(trajectory) if name not in KNOWN_FIELDS]
    return {name: getattr(trajectory, name, None) for name in names}


@functools.lru_cache(maxsize=64)
def _names_of(kind: type) -> Sequence[str]:
    if dataclasses.is_dataclass(kind):
        return [one.name for one in fields(kind)]
    return sorted(KNOWN_FIELDS)


def _stored_tensors(archive: TrajectoryArchive) -> Iterator[tuple[str, Tensor]]:
    for path, spec in archive.header.schema.items():
        array = archive.read_array(path)
        if not is_staged(path):
            yield path, to_tensor(array, spec.dtype)
            continue
        for group, part in zip(("curr_obs", "next_obs"), array, strict=True):
            yield f"{group}/{path[4:]}", to_tensor(part, spec.dtype)


def flatten_trajectory(archive: TrajectoryArchive) -> dict[str, AnyArray]:
    """Return every sampled field of a trajectory as rows: the slow, obvious way.

    Returns:
        Batch field name -> array [T * B, ...] of the stored dtype; row `t * B + b` is
        environment b at step t, extra rows trimmed.

    Raises:
        FormatError: if the archive is damaged.
    """
    header = archive.header
    flat: dict[str, AnyArray] = {}
    for entry in batch_fields(header.schema):
        array = archive.read_array(entry.field)
        if entry.stage is not None:
            array = array[entry.stage]
        kept = array[step_rows(entry.spec.rows, len(array), header.num_steps)]
        flat[entry.name] = kept.reshape(
            header.num_steps * header.num_envs, *entry.spec.shape
        )
    return flat


def nest(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """Turn `curr_obs/states` into `{"curr_obs": {"states": ...}}`, keys decoded."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        _put(tree, path, value)
    return tree


def _put(tree: dict[str, Any], path: str, value: Tensor) -> bool:
    """Hang a value into a tree of dicts; return whether its place was free."""
    *parents, last = [decode_key(part) for part in path.split("/")]
    node: Any = tree
    for part in parents:
        node = node.setdefault(part, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last in node:
        return False
    node[last] = value
    return True

"""The random draws of a buffer: seeded, carried on where a checkpoint was saved.

For one seed and window the first draws of a batch are RLinf's, from a generator that
moves as RLinf's does. What a batch has above the samples of the window, which RLinf
does not give, comes from a second one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from zarrbuf.common.arguments import check_seed
from zarrbuf.rlinf.files import encode_generator, restore_generator
from zarrbuf.stores.contract import TrajectoryStore

_MORE_SEED: Final = 0x7A617272
"""Added to the seed for the second generator."""


class Draws:
    """Generators of its own, so that nothing else in the process moves them.

    Attributes:
        generator: the first one, torch's.
    """

    def __init__(self, seed: int | None) -> None:
        """Start at a seed; None for a random one."""
        self.generator = torch.Generator()
        self._more = torch.Generator()
        self.start(seed)

    def start(self, seed: int | None) -> None:
        """Start anew.

        Raises:
            InvalidInputError: if the seed is not allowed.
        """
        if seed is None:
            self.generator.seed()
            self._more.seed()
            return
        number = check_seed(seed)
        self.generator.manual_seed(number)
        self._more.manual_seed((number + _MORE_SEED) % 2**63)

    def draw(self, total: int, count: int) -> torch.Tensor:
        """Draw samples with replacement.

        Args:
            total: samples in the window.
            count: how many are drawn.

        Returns:
            int64 [count], in [0, total). The first `min(count, total)` are RLinf's, of
            one call; after it the first generator stands where RLinf's does.
        """
        first = torch.randint(
            0, total, (min(count, total),), generator=self.generator, device="cpu"
        )
        if count <= total:
            return first
        more = torch.randint(
            0, total, (count - total,), generator=self._more, device="cpu"
        )
        return torch.cat([first, more])

    def copy(self) -> Draws:
        """Return draws that go on from here, and move nothing of these."""
        copied = Draws(0)
        copied.generator.set_state(self.generator.get_state())
        copied._more.set_state(self._more.get_state())
        return copied

    @property
    def state(self) -> dict[str, Any]:
        """Where the draws are, as checkpoints keep it."""
        return {
            "generator": encode_generator(self.generator),
            "more_generator": encode_generator(self._more),
        }

    def carry_on(self, store: TrajectoryStore, *, where: str) -> None:
        """Go on where a checkpoint was saved; without a state, start at its seed.

        A store that tells neither leaves the draws where they are.

        Raises:
            FormatError: if the state is damaged, `where` says whose.
        """
        state: Mapping[str, Any] = store.state or {}
        if "generator" in state:
            restore_generator(self.generator, state["generator"], where=where)
            if "more_generator" in state:
                restore_generator(self._more, state["more_generator"], where=where)
        elif store.seed is not None:
            self.start(store.seed)

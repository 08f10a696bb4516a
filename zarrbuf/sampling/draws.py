"""The random draws of a buffer: seeded, carried on where a checkpoint was saved."""

from __future__ import annotations

import torch

from zarrbuf.common.arguments import check_seed
from zarrbuf.rlinf.files import encode_generator, restore_generator
from zarrbuf.stores.contract import TrajectoryStore


class Draws:
    """A generator of its own, so that nothing else in the process moves it.

    Attributes:
        generator: torch's.
    """

    def __init__(self, seed: int | None) -> None:
        """Start at a seed; None for a random one."""
        self.generator = torch.Generator()
        self.start(seed)

    def start(self, seed: int | None) -> None:
        """Start anew.

        Raises:
            InvalidInputError: if the seed is not allowed.
        """
        if seed is None:
            self.generator.seed()
            return
        self.generator.manual_seed(check_seed(seed))

    @property
    def state(self) -> str:
        """The state of the generator, as checkpoints keep it."""
        return encode_generator(self.generator)

    def carry_on(self, store: TrajectoryStore, *, where: str) -> None:
        """Go on where a checkpoint was saved; without a state, start at its seed.

        Raises:
            FormatError: if the state is damaged, `where` says whose.
        """
        state = store.state or {}
        if "generator" in state:
            restore_generator(self.generator, state["generator"], where=where)
        elif store.seed is not None:
            self.start(store.seed)

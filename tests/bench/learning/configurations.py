"""The configurations that are compared. Each is a recipe, with choices that are not part of a recipe.

Most rows change one thing against :data:`REFERENCE`. The exceptions:

- ``fifo`` is Aurora's published loop, without replay.
- ``5 steps`` is unrolled and served with five draft steps instead of three.
- ``map`` is ``discard 0.1`` with the trainer's changes of the vocabulary map.
- ``map, replay 3`` also replays as much as the trainer does beside fresh batches. ``map, replay 3, averaged`` is the
  trainer's default.

All rows see the same fresh requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from tests.bench.learning.matching import STEPS_MULTIPLE, Match

from aurora_runtime.training.objective.position_losses import LOSSES
from aurora_runtime.training.optim.recipe import Recipe

DRAFT_STEPS: Final = 3
CAPTURED_TOP_K: Final = 32
"""The target's most likely tokens that the recorded traces hold per node."""


@dataclass(frozen=True)
class Configuration:
    """One row of the comparison.

    Attributes:
        top_k: the target's most likely tokens that are kept per node.
        copies_target: whether the draft's layer and head begin as copies of the target's.
        remap: whether the vocabulary map follows the traffic.
        draft_steps: the draft steps of the rounds in which held-out requests are evaluated.
    """

    description: str
    recipe: Recipe
    top_k: int = CAPTURED_TOP_K
    copies_target: bool = True
    remap: bool = False
    draft_steps: int = DRAFT_STEPS

    def is_comparable(self, match: Match) -> bool:
        """Whether the configuration can be compared with the others under ``match``.

        With equal steps, the matching sets the size of a batch, so a configuration cannot set another one. The steps of
        a shard also divide evenly for few numbers of replays only.
        """
        can_share_steps = STEPS_MULTIPLE % (1 + self.recipe.replay) == 0
        return match is Match.TRAFFIC or (can_share_steps and self.recipe.batch_roots == Recipe.batch_roots)

    @property
    def is_default(self) -> bool:
        """Whether the trainer learns like this by default."""
        return self == Configuration(self.description, Recipe(), remap=True)


def _row(
    description: str,
    *,
    top_k: int = CAPTURED_TOP_K,
    copies_target: bool = True,
    remap: bool = False,
    draft_steps: int = DRAFT_STEPS,
    **changes: Any,
) -> Configuration:
    """A configuration whose recipe has one replay, no averaging, and ``changes``."""
    recipe = dataclasses.replace(Recipe(), **{"replay": 1, "max_average_window": 1, **changes})
    return Configuration(description, recipe, top_k, copies_target, remap, draft_steps)


PUBLISHED: Final = "fifo"
"""The name of the configuration that is Aurora's published loop."""
REFERENCE: Final = "replay"
"""The name of the configuration with which all others are compared: forward KL, replay 1.

This is not the trainer's default, which is ``map, replay 3, averaged``."""
PLAIN: Final[Mapping[str, Any]] = MappingProxyType({"discard": 0.0})
AVERAGED: Final[Mapping[str, Any]] = MappingProxyType({"max_average_window": Recipe.max_average_window})

CONFIGURATIONS: Final[dict[str, Configuration]] = {
    PUBLISHED: _row("accepted tokens only, first in first out, no replay (Aurora's published loop)", **PLAIN, replay=0),
    REFERENCE: _row("the published loop with one replayed batch per fresh batch", **PLAIN),
    "replay 3": _row("the published loop with three replayed batches per fresh batch", **PLAIN, replay=3),
    "batches 2": _row("replay, batches twice as large, so half the steps", **PLAIN, batch_roots=2 * Recipe.batch_roots),
    "batches 4": _row("replay, batches four times as large", **PLAIN, batch_roots=4 * Recipe.batch_roots),
    "fifo, discard": _row("no replay, rejected nodes weigh 1", replay=0, discard=1.0),
    "discard 0.1": _row("replay, rejected nodes weigh 0.1", discard=0.1),
    "map": _row("as discard 0.1, the vocabulary map follows the traffic", discard=0.1, remap=True),
    "map, replay 3": _row("as map, with three replayed batches", discard=0.1, remap=True, replay=3),
    "map, replay 3, averaged": _row(
        "as map, with three replayed batches, moving average of the weights",
        discard=0.1,
        remap=True,
        replay=3,
        **AVERAGED,
    ),
    "map, replay 7": _row("as map, with seven replayed batches", discard=0.1, remap=True, replay=7),
    "map, replay 15": _row("as map, with fifteen replayed batches", discard=0.1, remap=True, replay=15),
    "map, replay 15, averaged": _row(
        "as map, with fifteen replayed batches, moving average of the weights",
        discard=0.1,
        remap=True,
        replay=15,
        **AVERAGED,
    ),
    "discard 0.5": _row("replay, rejected nodes weigh 0.5", discard=0.5),
    "discard 1": _row("replay, rejected nodes weigh 1", discard=1.0),
    "random": _row("replay, layer and head begin with random weights", **PLAIN, copies_target=False),
    "averaged": _row("replay, moving average of the weights", **PLAIN, **AVERAGED),
    "5 steps": _row("replay, served in five steps, unrolled five steps", **PLAIN, draft_steps=5, unroll_steps=5),
    "5 steps, unrolled 3": _row("replay, served in five steps, unrolled three steps", **PLAIN, draft_steps=5),
    "unrolled 1": _row("replay, unrolled one step", **PLAIN, unroll_steps=1),
    "unrolled 5": _row("replay, unrolled five steps", **PLAIN, unroll_steps=5),
    "top 4": _row("replay, 4 tokens captured per node", **PLAIN, top_k=4),
    **{
        name: _row(f"replay, loss {name.replace('_', ' ')}", **PLAIN, loss=loss)
        for name, loss in LOSSES.items()
        if loss is not Recipe().loss
    },
}

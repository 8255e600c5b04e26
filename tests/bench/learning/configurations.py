"""The ways to learn that are compared.

Each row but ``fifo``, ``tree``, ``5 steps`` and the maps changes one thing against :data:`REFERENCE`; ``tree`` is
``discard 0.1`` on the same answers with other rounds, ``5 steps`` is unrolled deeper and served deeper, ``map`` is
``discard 0.1`` with the trainer's changes of the vocabulary map, ``map, replay 3`` with as much replay as the trainer
makes beside fresh batches too, and averaged it is what the trainer does. All see the same fresh requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from tests.assets.traces.drafted import CHAINS, TREES
from tests.bench.learning.matching import SHARE, Match

from aurora_runtime.training.data.batch import UnrollPath
from aurora_runtime.training.data.replay_sampling import ReplaySampling
from aurora_runtime.training.objective.losses import LOSSES
from aurora_runtime.training.optim.recipe import Recipe

DRAFT_STEPS: Final = 3
CAPTURED: Final = 32
"""Most likely tokens kept per node in the recorded traces."""


@dataclass(frozen=True)
class Configuration:
    """One row of the comparison: a recipe, and what lies outside of recipes."""

    what: str
    recipe: Recipe
    top_k: int = CAPTURED  # of the target's most likely tokens, per node
    shape: str = CHAINS  # of the rounds
    as_target: bool = True  # whether layer and head begin as the target's
    remap: bool = False  # whether the vocabulary map follows the traffic
    steps: int = DRAFT_STEPS  # of the rounds that held-out requests would be served in

    def differs(self, match: Match) -> bool:
        """Whether it is worth a run: with equal steps the matching says how large a batch is, and no more can be
        replayed than steps are shared out to."""
        shared = SHARE % (1 + self.recipe.replay) == 0
        return match is Match.TRAFFIC or (shared and self.recipe.batch_slots == Recipe.batch_slots)

    @property
    def is_default(self) -> bool:
        """Whether this is what the trainer does unless told otherwise."""
        return self == Configuration(self.what, Recipe(), remap=True)


def _row(
    what: str,
    *,
    top_k: int = CAPTURED,
    shape: str = CHAINS,
    as_target: bool = True,
    remap: bool = False,
    steps: int = DRAFT_STEPS,
    **changes: Any,
) -> Configuration:
    recipe = dataclasses.replace(Recipe(), **{"replay": 1, "average_horizon": 1, **changes})
    return Configuration(what, recipe, top_k, shape, as_target, remap, steps)


PUBLISHED: Final = "fifo"
REFERENCE: Final = "replay"
PLAIN: Final[Mapping[str, Any]] = MappingProxyType({"discard": 0.0, "unroll_path": UnrollPath.COMMITTED})
AVERAGED: Final[Mapping[str, Any]] = MappingProxyType({"average_horizon": Recipe.average_horizon})
PROPOSED: Final[Mapping[str, Any]] = MappingProxyType({"unroll_path": UnrollPath.PROPOSED})

CONFIGURATIONS: Final[dict[str, Configuration]] = {
    PUBLISHED: _row("accepted only, first in first out, once (Aurora's published loop)", **PLAIN, replay=0),
    REFERENCE: _row("+ one replayed batch per fresh one", **PLAIN),
    "replay 3": _row("+ three replayed batches per fresh one", **PLAIN, replay=3),
    "batches 2": _row(
        "replay, batches twice as large, so half of the steps", **PLAIN, batch_slots=2 * Recipe.batch_slots
    ),
    "batches 4": _row("replay, batches four times as large", **PLAIN, batch_slots=4 * Recipe.batch_slots),
    "recent": _row("replay, what came lately more often", **PLAIN, replay_sampling=ReplaySampling.RECENT),
    "surprising": _row(
        "replay, what took more rounds per token more often", **PLAIN, replay_sampling=ReplaySampling.PRIORITIZED
    ),
    "fifo, discard": _row("once, rejected nodes weigh 1", replay=0, discard=1.0),
    "discard 0.1": _row("replay, rejected nodes weigh 0.1", discard=0.1),
    "map": _row("as discard 0.1, and the vocabulary map is chosen anew from the traffic", discard=0.1, remap=True),
    "map, replay 3": _row("as map, with three replayed batches", discard=0.1, remap=True, replay=3),
    "map, replay 3, averaged": _row(
        "as map, with three replayed batches, the mean of the last weights",
        discard=0.1,
        remap=True,
        replay=3,
        **AVERAGED,
    ),
    "map, replay 7": _row("as map, with seven replayed batches", discard=0.1, remap=True, replay=7),
    "map, replay 15": _row("as map, with fifteen replayed batches", discard=0.1, remap=True, replay=15),
    "map, replay 15, averaged": _row(
        "as map, with fifteen replayed batches, the mean of the last weights",
        discard=0.1,
        remap=True,
        replay=15,
        **AVERAGED,
    ),
    "discard 0.5": _row("replay, rejected nodes weigh 0.5", discard=0.5),
    "discard 1": _row("replay, rejected nodes weigh 1", discard=1.0),
    "proposed": _row("replay, only what was proposed and accepted", discard=0.0, **PROPOSED),
    "proposed, discard": _row("replay, all that was proposed: accepted and rejected alike", discard=1.0, **PROPOSED),
    "prompt": _row("replay, prompt tokens weigh 0.2", **PLAIN, prompt_weight=0.2),
    "tree": _row("replay, rejected nodes weigh 0.1, drafted in trees", shape=TREES, discard=0.1),
    "tree, discard 1": _row("replay, rejected nodes weigh 1, drafted in trees", shape=TREES, discard=1.0),
    "random": _row("replay, layer and head begin random", **PLAIN, as_target=False),
    "averaged": _row("replay, the mean of the last weights", **PLAIN, **AVERAGED),
    "5 steps": _row("replay, served in five steps, unrolled as deep", **PLAIN, steps=5, unroll_steps=5),
    "5 steps, unrolled 3": _row("replay, served in five steps, unrolled three deep", **PLAIN, steps=5),
    "unrolled 1": _row("replay, unrolled one deep", **PLAIN, unroll_steps=1),
    "unrolled 5": _row("replay, unrolled five deep", **PLAIN, unroll_steps=5),
    "top 4": _row("replay, 4 tokens captured per node", **PLAIN, top_k=4),
    **{
        name: _row(f"replay, loss {name.replace('_', ' ')}", **PLAIN, loss=loss)
        for name, loss in LOSSES.items()
        if loss is not Recipe().loss
    },
}

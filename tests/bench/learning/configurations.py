"""The ways to learn that are compared, and how each spends the same number of optimizer steps.

Each row but ``fifo`` and ``map`` changes one thing against :data:`REFERENCE`. All see the same fresh requests and make
the same steps: who replays takes bigger batches, and so processes more positions, which is reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from aurora_runtime.training.batch import Follow
from aurora_runtime.training.losses import LOSSES
from aurora_runtime.training.recipe import Recipe
from aurora_runtime.training.replay import Choice

CAPTURED: Final = 32
"""Most likely tokens kept per node in the recorded traces."""


@dataclass(frozen=True)
class Configuration:
    """One row of the comparison: a recipe, how many of the target's most likely tokens capture kept, and whether the
    vocabulary map follows the traffic, as the trainer's does."""

    what: str
    recipe: Recipe
    top_k: int = CAPTURED
    remap: bool = False


def _row(what: str, *, top_k: int = CAPTURED, remap: bool = False, **changes: Any) -> Configuration:
    return Configuration(what, dataclasses.replace(Recipe(), **changes), top_k, remap)


REFERENCE: Final = "replay"
PLAIN: Final[Mapping[str, Any]] = MappingProxyType({"discard": 0.0, "follow": Follow.COMMITTED})
PROPOSED: Final[Mapping[str, Any]] = MappingProxyType({"follow": Follow.PROPOSED})

CONFIGURATIONS: Final[dict[str, Configuration]] = {
    "fifo": _row("accepted only, first in first out, once (Aurora's published loop)", **PLAIN, replay=0),
    "replay": _row("+ one replayed batch per fresh one", **PLAIN),
    "recent": _row("replay, what came lately more often", **PLAIN, choice=Choice.RECENT),
    "surprising": _row("replay, what took more rounds per token more often", **PLAIN, choice=Choice.SURPRISING),
    "fifo, discard": _row("once, rejected nodes weigh 1", replay=0, discard=1.0),
    "discard 0.1": _row("replay, rejected nodes weigh 0.1", discard=0.1),
    "map": _row("as discard 0.1, and the vocabulary map is chosen anew from the traffic", discard=0.1, remap=True),
    "discard 0.5": _row("replay, rejected nodes weigh 0.5", discard=0.5),
    "discard 1": _row("replay, rejected nodes weigh 1", discard=1.0),
    "proposed": _row("replay, only what was proposed and accepted", discard=0.0, **PROPOSED),
    "proposed, discard": _row("replay, all that was proposed: accepted and rejected alike", discard=1.0, **PROPOSED),
    "prompt": _row("replay, prompt tokens weigh 0.2", **PLAIN, prompt_weight=0.2),
    "top 4": _row("replay, 4 tokens captured per node", **PLAIN, top_k=4),
    **{
        name: _row(f"replay, loss {name.replace('_', ' ')}", **PLAIN, loss=loss)
        for name, loss in LOSSES.items()
        if loss is not Recipe().loss
    },
}

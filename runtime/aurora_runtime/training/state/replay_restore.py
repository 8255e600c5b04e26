"""What replay and the held-out set hold, told by the shards it is from: a state is small, and a restart reads it again.

Invariants: a state names consumed shards alone, which are in the store as long as the state is; a trainer that resumes
from it holds what the one before held of these, in the same order, and goes on forgetting in the same order, unless
shards retired or were damaged meanwhile. An example may see less of its prompt than before, or more: prefixes come from
the shards that are read again. Its place is an index, so a shard must always give the same examples: cuts begin at the
prompt's end, whatever of the prompt is known (with a ``prompt_weight`` they would not).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.data.held_out import HeldOutSet
from aurora_runtime.training.data.replay import Place, ReplayBuffer
from aurora_runtime.training.data.shards import ShardReader

log = logging.getLogger(__name__)
SPANS: Final = "replay.spans"
"""``[N, 4]`` int64, oldest first: the shard's place among the consumed ones, and what else is a :class:`Place`."""
EVICTED: Final = "replay.evicted"
HELD_OUT: Final = "held_out.shards"
"""``[M]`` int64: places among the consumed shards."""


def state(memory: ReplayBuffer, held_out: HeldOutSet, consumed: Sequence[str]) -> dict[str, Tensor]:
    """Where what both hold is from. Of shards that were retired nothing is told: they may be gone."""
    places = {key: place for place, key in enumerate(consumed)}
    spans = [
        (places[span.shard], span.first, span.count, span.number) for span in memory.places() if span.shard in places
    ]
    held = sorted(places[key] for key in held_out.shards() if key in places)
    return {
        SPANS: torch.tensor(spans, dtype=torch.int64).view(-1, 4),
        EVICTED: torch.tensor(memory.evicted),
        HELD_OUT: torch.tensor(held, dtype=torch.int64),
    }


def refill(
    tensors: Mapping[str, Tensor],
    consumed: Sequence[str],
    reader: ShardReader,
    memory: ReplayBuffer,
    held_out: HeldOutSet,
) -> None:
    """Read what :func:`state` told again, shard by shard in the order of their consumption."""
    if SPANS not in tensors:
        log.info("the state is of a trainer that did not tell what it held: replay begins with the next shards")
        return
    spans = defaultdict[int, list[Place]](list)
    for place, first, count, number in tensors[SPANS].tolist():
        spans[place].append(Place(consumed[place], first, count, number))
    held = set(tensors[HELD_OUT].tolist())
    order = sorted(spans.keys() | held)
    keys = [consumed[place] for place in order]
    for turn, place in enumerate(order):
        reader.expect(keys[turn:])
        shard = reader.read(consumed[place])
        if shard is None:
            continue
        for span in spans[place]:
            memory.put_back(span, shard.train)
        for request, examples in shard.held_out if place in held else ():
            held_out.add(request, examples, shard.key)
    memory.evicted = int(tensors[EVICTED])

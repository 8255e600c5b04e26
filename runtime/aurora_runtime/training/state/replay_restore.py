"""Saves the replay buffer and the held-out set as references to shards, which a restart reads again.

References keep a stored state small. Invariants: a state names only consumed shards, which stay in the store as long
as the state does. A resumed trainer holds the same examples of these shards in the same order. It also evicts later
examples in the same order, unless shards were retired or damaged meanwhile.

An example may see less or more of its prompt than before, because prefixes come from the shards that are read again. An
example is referenced by its index, so a shard must always give the same examples. Cuts begin at the prompt's end,
however much of the prompt is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from aurora_runtime.training.data.held_out_set import HeldOutSet
from aurora_runtime.training.data.replay import ReplayBuffer, ShardSpan
from aurora_runtime.training.data.shards import ShardReader

SPANS: Final = "replay.spans"
"""``[N, 3]`` int64, oldest first: the shard's index among the consumed ones, then the other fields of a
:class:`ShardSpan`."""
EVICTED: Final = "replay.evicted"
HELD_OUT: Final = "held_out.shards"
"""``[M]`` int64: indices among the consumed shards."""
MEASURABLE: Final = "held_out.measurable"
"""``[K, 2]`` int64, oldest first: the requests of :attr:`HeldOutSet.measurable`, each with the index of its shard among
the consumed ones. A restart need not read these shards to count. Missing in states of earlier versions: then the
requests of the shards that are read count."""


def spans_state(replay: ReplayBuffer, held_out: HeldOutSet, consumed: Sequence[str]) -> dict[str, Tensor]:
    """References to the shards of the buffer and the held-out set. Retired shards are left out: they may be deleted."""
    index = {key: i for i, key in enumerate(consumed)}
    spans = [(index[span.shard], span.first, span.count) for span in replay.spans() if span.shard in index]
    held_out_shards = sorted(index[key] for key in held_out.shards_to_restore() if key in index)
    measurable = [(request, index[key]) for request, key in held_out.measurable.items() if key in index]
    return {
        SPANS: torch.tensor(spans, dtype=torch.int64).view(-1, 3),
        EVICTED: torch.tensor(replay.evicted),
        HELD_OUT: torch.tensor(held_out_shards, dtype=torch.int64),
        MEASURABLE: torch.tensor(measurable, dtype=torch.int64).view(-1, 2),
    }


def restore(
    tensors: Mapping[str, Tensor],
    consumed: Sequence[str],
    reader: ShardReader,
    replay: ReplayBuffer,
    held_out: HeldOutSet,
) -> None:
    """The inverse of :func:`spans_state`: fill ``replay`` and ``held_out``, shard by shard in order of consumption."""
    spans = defaultdict[int, list[ShardSpan]](list)
    for index, first, count in tensors[SPANS][:, :3].tolist():
        spans[index].append(ShardSpan(consumed[index], first, count))
    held_out_shards = set(tensors[HELD_OUT].tolist())
    order = sorted(spans.keys() | held_out_shards)
    keys = [consumed[index] for index in order]
    for done, index in enumerate(order):
        reader.prefetch(keys[done:])
        shard = reader.read(consumed[index])
        if shard is None:
            continue
        for span in spans[index]:
            replay.restore(span, shard.train)
        for request, examples, measurable in shard.held_out if index in held_out_shards else ():
            held_out.add(request, examples, shard.key, measurable=measurable)
        reader.finish()
    replay.evicted = int(tensors[EVICTED])
    if MEASURABLE in tensors:
        held_out.measurable = {request: consumed[index] for request, index in tensors[MEASURABLE].tolist()}

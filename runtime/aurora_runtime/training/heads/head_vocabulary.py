"""Reads the vocabulary map of a published head.

``d2t`` holds either the target ids of the draft's tokens, or their offsets: the target id of draft token ``i`` is then
``i + d2t[i]``, as SpecForge, SGLang and vLLM store it. ``t2d`` marks the target tokens that the draft can propose.

Invariant: a map is never guessed. Where both readings of ``d2t`` are possible and no ``t2d`` decides, the map is
refused, because a wrong reading would propose wrong tokens and no check after it would notice.
"""

from __future__ import annotations

import torch
from torch import Tensor


class AmbiguousMap(ValueError):
    """Why no target ids follow from the tensors. The message is the end of a sentence about the head."""


def target_ids(d2t: Tensor | None, t2d: Tensor | None, rows: int, vocab_size: int) -> Tensor:
    """The target ids ``[rows]`` int64 of the draft's tokens, in the order of the head's rows.

    Args:
        d2t: ids or offsets ``[rows]``, any integer type. None: the draft can propose every token of the target.
        t2d: mask ``[vocab_size]``, if the head has one.

    Raises :class:`AmbiguousMap`.
    """
    if d2t is None:
        if rows != vocab_size:
            raise AmbiguousMap(f"it has no d2t although its vocabulary of {rows} tokens is smaller than the target's")
        return torch.arange(rows)
    if d2t.shape != (rows,):
        raise AmbiguousMap(f"d2t does not have one entry for each of its {rows} tokens")
    if t2d is not None and t2d.shape != (vocab_size,):
        raise AmbiguousMap(f"t2d does not have one entry for each of the target's {vocab_size} tokens")
    stored = d2t.to(torch.int64)
    # Offsets beyond the vocabulary are impossible, and adding to them could overflow.
    bounded = bool(((stored >= -vocab_size) & (stored < vocab_size)).all())
    readings = [ids for ids in (stored + torch.arange(rows), stored) if bounded and _is_map(ids, t2d, vocab_size)]
    if not readings:
        also = " that t2d marks" if t2d is not None else ""
        raise AmbiguousMap(f"d2t names no {rows} different tokens of the target{also}, neither as offsets nor as ids")
    if len(readings) > 1:
        raise AmbiguousMap("d2t may hold offsets or ids, and it has no t2d that decides")
    return readings[0]


def _is_map(ids: Tensor, t2d: Tensor | None, vocab_size: int) -> bool:
    """Whether ``ids`` are target tokens, each once, and those that ``t2d`` marks."""
    if not ids.numel() or int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        return False
    marked = torch.zeros(vocab_size, dtype=torch.bool).index_fill_(0, ids, True)
    if int(marked.sum()) != ids.numel():
        return False
    return t2d is None or bool((t2d.bool() == marked).all())

"""Counts the answer tokens of examples: what a draft could have guessed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aurora_runtime.training.data.examples import Example


def counts_of(examples: Sequence[Example], vocab: int) -> Tensor:
    """How often the target said each token behind a trained root, ``[vocab]`` int64: what a draft could have guessed.

    The state at slot ``t`` proposes token ``t + 2``, and roots of a request's examples are distinct, so each token of
    an answer counts once.
    """
    said = [e.tokens[e.first_root + 2 :][: e.roots] for e in examples]
    return torch.bincount(torch.cat(said), minlength=vocab) if said else torch.zeros(vocab, dtype=torch.int64)

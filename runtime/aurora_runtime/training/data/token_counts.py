"""Counts the answer tokens of examples: the tokens that a draft could have proposed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aurora_runtime.training.data.examples import Example


def counts_of(examples: Sequence[Example], vocab_size: int) -> Tensor:
    """How often each token followed a trained root, ``[vocab]`` int64.

    The state at slot ``t`` proposes token ``t + 2``, and the roots of a request's examples are distinct, so each token
    of an answer counts once.
    """
    answers = [e.tokens[e.first_root + 2 :][: e.root_count] for e in examples]
    return (
        torch.bincount(torch.cat(answers), minlength=vocab_size)
        if answers
        else torch.zeros(vocab_size, dtype=torch.int64)
    )

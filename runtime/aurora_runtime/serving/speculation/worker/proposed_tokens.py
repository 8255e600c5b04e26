"""Puts lookup's tokens into a verify round.

A chain of the verify batch is just tokens: the target verifies them the same way whoever proposed them. So lookup's
tokens either replace the draft's, or make a chain without the draft.

Invariants: every token is a valid id. A row without a proposal repeats one, which the target then rejects or, if it
happens to be right, accepts. A request that asks for no speculation always has such a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aurora_runtime.engine.arms import Source
from aurora_runtime.pinned_copy import to_device
from aurora_runtime.request_wish import wish_of
from aurora_runtime.serving.speculation.lookup_index import Proposal
from aurora_runtime.serving.speculation.worker.rounds import Round

FILLER: Proposal = Proposal((0,))


def lookup_chains(current: Round) -> list[list[int]]:
    """The proposals of all requests, each filled up to the round's number of steps."""
    steps = current.decision.arm.steps
    chains = [list((proposal if proposal.tokens else FILLER).tokens[:steps]) for proposal in current.proposals]
    return [tokens + tokens[-1:] * (steps - len(tokens)) for tokens in chains]


def _with_fillers(proposed: Tensor, current: Round) -> Tensor:
    """The proposals ``[B, steps]`` with fillers for the requests that ask for no speculation."""
    without = [i for i, req in enumerate(current.reqs) if not wish_of(req).speculate]
    if not without:
        return proposed
    return proposed.index_fill(0, to_device(without, proposed.device), FILLER.tokens[0])


def lookup_verify_input(draft_worker: Any, batch: Any, current: Round) -> Any:
    """SGLang's verify input for chains of lookup's tokens, without the draft (eagle_worker_v2.py:660).

    The parents and scores of a chain are the same in every round, so SGLang keeps them (base_spec_worker.py:115).
    """
    from sglang.srt.speculative.eagle_worker_common import build_eagle_verify_input

    size = len(current.reqs)
    return build_eagle_verify_input(
        batch,
        batch.spec_info,
        draft_worker._topk1_parents_prealloc[:size],
        draft_worker._topk1_score_indices_prealloc[:size],
        to_device(lookup_chains(current), batch.device),
        None,
        target_worker=draft_worker.target_worker,
        topk=1,
        num_steps=draft_worker.speculative_num_steps,
        num_draft_tokens=draft_worker.speculative_num_draft_tokens,
        tree_mask_mode=draft_worker.tree_mask_mode,
        device=draft_worker.device,
    )


def with_lookup(draft_token: Tensor, current: Round) -> Tensor:
    """The verify round's tokens ``[B * n]`` with lookup's tokens in the rows of requests whose source is lookup."""
    tokens = draft_token.view(len(current.reqs), -1)
    drafted = tokens[:, 1:]
    proposed = _with_fillers(drafted, current)
    chosen = [i for i, source in enumerate(current.decision.sources) if source is Source.LOOKUP]
    if chosen:
        rows = to_device(chosen, tokens.device)
        looked_up = to_device(lookup_chains(current), tokens.device)[rows].to(tokens.dtype)
        proposed = proposed.index_copy(0, rows, looked_up)
    return draft_token if proposed is drafted else torch.cat((tokens[:, :1], proposed), 1).view(-1)

"""The batch with which the draft catches up holds the late requests only, and leaves SGLang's batch as it was."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aurora_runtime.serving.speculation.worker.draft_catch_up import LateRequest, catch_up
from aurora_runtime.serving.speculation.worker.pending_tokens import CatchUpInput
from tests.unit.serving.speculation.worker.fake_requests import FakeRequest


class Draft:
    """SGLang's draft, whose passes are recorded."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.draft_runner = self
        self.req_to_token_pool = SimpleNamespace(req_to_token=torch.arange(40).view(4, 10))

    def init_new(self, batch: Any, _: Any, **__: Any) -> Any:
        """``ForwardBatch.init_new``, which writes the grammars of the batch's requests."""
        batch.sampling_info.grammars = [req.rid for req in batch.reqs]
        self.batches.append(batch)
        return SimpleNamespace()

    def forward(self, _: Any) -> Any:
        rows = len(self.batches[-1].reqs)
        return SimpleNamespace(
            logits_output=SimpleNamespace(next_token_logits=torch.eye(4)[:rows], hidden_states=torch.zeros(rows, 2))
        )


@pytest.fixture
def draft(monkeypatch: pytest.MonkeyPatch) -> Draft:
    draft = Draft()
    batches = SimpleNamespace(
        CaptureHiddenMode=SimpleNamespace(LAST="last"),
        ForwardBatch=SimpleNamespace(init_new=draft.init_new),
        ForwardMode=SimpleNamespace(EXTEND="extend"),
    )
    monkeypatch.setitem(sys.modules, "sglang.srt.model_executor.forward_batch_info", batches)
    monkeypatch.setitem(sys.modules, "sglang.srt.speculative.eagle_info", SimpleNamespace(EagleDraftExtendInput=dict))
    return draft


def test_one_late_request_of_three_makes_a_batch_of_one(draft: Draft) -> None:
    reqs = [FakeRequest("a"), FakeRequest("b"), FakeRequest("c")]
    rows = torch.tensor([3, 1, 2])
    sampling = SimpleNamespace(grammars=["of a", "of b", "of c"])
    batch = SimpleNamespace(
        reqs=reqs, req_pool_indices=rows, req_pool_indices_cpu=rows, sampling_info=sampling, seq_lens=rows
    )
    start = catch_up(
        draft, batch, [LateRequest(reqs[1], 1, 9, 2)], CatchUpInput(torch.tensor([50, 51]), torch.zeros(2, 2))
    )
    [extend] = draft.batches
    assert (extend.reqs, extend.extend_lens, extend.prefix_lens) == ([reqs[1]], [2], [7])
    assert extend.out_cache_loc.tolist() == [17, 18], "the last two of nine tokens in row 1"
    for field in (extend.req_pool_indices, extend.req_pool_indices_cpu):
        assert field.tolist() == [1]
    assert (extend.seq_lens.tolist(), extend.seq_lens_cpu.tolist()) == ([9], [9])
    assert extend.sampling_info.grammars == ["b"]
    assert start.topk_index.tolist() == [[0]]
    assert (batch.reqs, batch.req_pool_indices_cpu.tolist()) == (reqs, [3, 1, 2])
    assert sampling.grammars == ["of a", "of b", "of c"], "SGLang's batch keeps its own"

"""Verification on a CPU samples as each request asks, whatever was proposed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aurora_runtime.cpu import sampled_verification
from aurora_runtime.cpu.draft_trees import verify_tree_greedy_cpu
from aurora_runtime.cpu.sampled_verification import SampledVerification

pytestmark = pytest.mark.filterwarnings("ignore:.*:Warning:sglang")  # of its import

REQUESTS = 4000
PROBABILITIES = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
"""Of four tokens after each of three nodes. Node 1 proposes token 0, and node 2 token 3."""
PROPOSED = torch.tensor([7, 0, 3])
TOP_K_ALL = 1 << 30


class GreedyFunction:
    """SGLang's ``verify_tree_greedy_func`` on a CPU, which calls our kernel."""

    def __call__(self, *args: torch.Tensor, topk: int) -> tuple[torch.Tensor, ...]:
        verify_tree_greedy_cpu(*args)
        return args[:3]


def sampling_info(requests: int, **changed: Any) -> SimpleNamespace:
    fields = {
        "is_all_greedy": False,
        "temperatures": torch.ones(requests, 1),
        "top_ks": torch.full((requests,), TOP_K_ALL, dtype=torch.int32),
        "top_ps": torch.ones(requests),
        "min_ps": torch.zeros(requests),
        "need_top_k_sampling": False,
        "need_top_p_sampling": False,
        "need_min_p_sampling": False,
        "max_top_k": None,
        "sampling_seed": None,
    }
    return SimpleNamespace(**(fields | changed))


def verify(sampling: SimpleNamespace, logits: torch.Tensor, idle: bool = False) -> list[list[int]]:
    """The tokens that each request gets from chains of :data:`PROPOSED`. ``logits``: [B, n, V]."""
    batch, nodes, _ = logits.shape
    flat = logits.flatten(0, 1)
    before = flat.clone()
    hooks = SampledVerification()
    verify_input = SimpleNamespace(positions=torch.arange(batch * nodes))
    forward_mode = SimpleNamespace(is_idle=lambda: idle)
    hooks.round_begins(
        verify_input,
        SimpleNamespace(forward_mode=forward_mode, sampling_info=sampling),
        SimpleNamespace(next_token_logits=flat),
        None,
        watermark_state=None,
    )
    predicts = torch.zeros(batch * nodes, dtype=torch.int32)
    accept_index = torch.full((batch, nodes), -1, dtype=torch.int32)
    counts = torch.empty(batch, dtype=torch.int32)
    links = torch.arange(1, nodes + 1)
    links[-1] = -1
    hooks.verify(
        GreedyFunction(),
        predicts=predicts,
        accept_index=accept_index,
        accept_token_num=counts,
        candidates=PROPOSED[:nodes].repeat(batch, 1),
        retrieve_index=torch.arange(batch * nodes).view(batch, nodes),
        retrieve_next_token=links.repeat(batch, 1),
        retrieve_next_sibling=torch.full((batch, nodes), -1),
        target_predict=flat.argmax(-1).view(batch, nodes),
        topk=1,
    )
    assert torch.equal(flat.nan_to_num(7.0), before.nan_to_num(7.0)), "logits are read again for log probabilities"
    return [
        predicts[accepted[: count + 1].long()].tolist() for accepted, count in zip(accept_index, counts, strict=True)
    ]


def chains(requests: int = REQUESTS, nodes: int = 3) -> torch.Tensor:
    return PROBABILITIES[:nodes].log().repeat(requests, 1, 1)


def share(answers: list[list[int]], token: int, place: int = 0) -> float:
    """Of the answers that have a token at ``place``, the share with ``token`` there."""
    there = [answer[place] for answer in answers if len(answer) > place]
    return there.count(token) / len(there)


@pytest.mark.parametrize("nodes", [1, 3], ids=["nothing proposed", "a chain"])
def test_each_token_follows_the_targets_distribution_whatever_was_proposed(nodes: int) -> None:
    torch.manual_seed(0)
    answers = verify(sampling_info(REQUESTS), chains(nodes=nodes))
    for place in range(nodes):
        for token in range(4):
            assert share(answers, token, place) == pytest.approx(float(PROBABILITIES[place, token]), abs=0.05)
    longer = sum(len(answer) > 1 for answer in answers) / REQUESTS
    assert longer == pytest.approx(0.5 if nodes == 3 else 0.0, abs=0.03), "token 0 is accepted as often as it is drawn"


def test_a_temperature_flattens_the_distribution() -> None:
    torch.manual_seed(0)
    hot = verify(sampling_info(REQUESTS, temperatures=torch.full((REQUESTS, 1), 100.0)), chains(nodes=1))
    assert share(hot, 3) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"top_ks": 2, "need_top_k_sampling": True, "max_top_k": 2}, {0, 1}),
        ({"top_ps": 0.7, "need_top_p_sampling": True}, {0, 1}),
        ({"min_ps": 0.25, "need_min_p_sampling": True}, {0, 1, 2}),
    ],
    ids=["top_k", "top_p", "min_p"],
)
def test_unlikely_tokens_are_left_out_as_the_request_asks(changed: dict[str, Any], kept: set[int]) -> None:
    torch.manual_seed(0)
    limits = {
        name: torch.full((REQUESTS,), value, dtype=torch.int32 if name == "top_ks" else torch.float)
        if name.endswith("s")
        else value
        for name, value in changed.items()
    }
    answers = verify(sampling_info(REQUESTS, **limits), chains())
    assert {answer[0] for answer in answers} == kept


def test_greedy_requests_get_sglangs_tokens_beside_others() -> None:
    torch.manual_seed(0)
    top_ks = torch.full((REQUESTS,), TOP_K_ALL, dtype=torch.int32)
    top_ks[::2] = 1
    tied = torch.tensor([0.5, 0.5, 0.0, 0.0]).log().repeat(REQUESTS, 1, 1)
    answers = verify(sampling_info(REQUESTS, top_ks=top_ks, need_top_k_sampling=True), tied)
    assert {answer[0] for answer in answers[::2]} == {0}
    assert share(answers[1::2], 1) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("idle", [True, False])
def test_greedy_and_idle_rounds_are_left_to_sglang(monkeypatch: pytest.MonkeyPatch, idle: bool) -> None:
    monkeypatch.setattr(sampled_verification, "sampled_tokens", None)
    answers = verify(sampling_info(2, is_all_greedy=not idle), chains(2), idle=idle)
    assert answers == [[0, 3, 0]] * 2


@pytest.mark.parametrize("row", [[float("-inf")] * 4, [float("inf"), 0.0, 0.0, 0.0], [float("nan")] * 4])
def test_a_row_without_a_possible_token_ends_no_scheduler(row: list[float]) -> None:
    """As after the end of a grammar, where ``min_new_tokens`` forbids the end of the text."""
    sampling = sampling_info(2, top_ps=torch.tensor([0.9, 0.9]), need_top_p_sampling=True)
    logits = torch.stack([torch.tensor(row), PROBABILITIES[0].log()]).unsqueeze(1)
    assert {len(answer) for answer in verify(sampling, logits)} == {1}

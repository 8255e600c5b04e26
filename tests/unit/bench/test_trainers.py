"""The re-created steps compute EAGLE-3's training-time test, and all trainers pass over the same requests."""

from __future__ import annotations

import math

import pytest
import torch

from aurora_runtime.engine.draft_config import DraftConfig
from aurora_runtime.training.model.draft import DraftModel
from tests.bench.published_steps import PUBLISHED_TRAINERS, PublishedSession, PublishedTrainer, WholeSequences
from tests.bench.trainer import DRAFT_VOCABULARY, random_request
from tests.bench.trainers import NAMES, OURS, Comparison, compare, steps_of, table
from tests.unit.training.model.test_unroll import decoded

SMALL = DraftConfig(32, 48, 4, 2, 8, 8, 100, 60, 1e-5, 1e4, 512, (1, 3, 4))
SHAPE = DraftConfig(32, 48, 4, 2, 8, 8, DRAFT_VOCABULARY + 100, DRAFT_VOCABULARY, 1e-5, 1e4, 512, (1, 3, 4))


@pytest.mark.parametrize("trainer", PUBLISHED_TRAINERS, ids=lambda trainer: trainer.name)
def test_a_loss_is_that_of_decoding_slot_by_slot(trainer: PublishedTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.published_steps.product_dtype", lambda _: torch.float32)
    torch.manual_seed(0)
    draft = DraftModel(SMALL, torch.randn(100, 32))
    head, ids = torch.randn(100, 32), torch.arange(20, 80)
    trace = random_request(SMALL, 3, prompt_tokens=6, answer_tokens=14)
    trace.tokens.remainder_(SMALL.vocab_size)
    sequences = WholeSequences.of([trace])
    session = PublishedSession(trainer, draft, head, ids)
    logits = sequences.last[0].float() @ head.T
    expected = 0.0
    for depth in range(trainer.depths):
        entropies, tokens = [], trace.tokens.tolist()
        for slot in range(trace.hidden.shape[0] - depth - 1):
            predicting = slot + 1 + depth  # the state whose distribution the proposal is compared with
            if predicting < trace.prompt_length - 1 or int(logits[predicting].argmax()) not in ids.tolist():
                continue
            with torch.no_grad():
                out = decoded(draft, trace, slot, tuple(tokens[slot + 2 : slot + 2 + depth]))
                logprobs = draft.logits(out).log_softmax(-1)
            entropies.append(-float((logits[predicting][ids].softmax(-1) * logprobs).sum()))
        expected += 0.8**depth * sum(entropies) / max(len(entropies), 1)
    assert float(session.loss(sequences).detach()) == pytest.approx(expected, rel=0.02)  # products may be in bf16


def test_a_published_step_learns() -> None:
    torch.manual_seed(0)
    draft = DraftModel(SMALL, torch.randn(100, 32))
    trace = random_request(SMALL, 3, prompt_tokens=6, answer_tokens=30)
    trace.tokens.remainder_(SMALL.vocab_size)
    sequences = WholeSequences.of([trace])
    session = PublishedSession(PUBLISHED_TRAINERS[0], draft, torch.randn(100, 32), torch.arange(60))
    losses = [session.step(sequences) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_all_trainers_pass_over_the_same_requests_in_turn() -> None:
    batches = [[random_request(SHAPE, seed, 6, 10)] for seed in range(2)]
    comparison = compare(SHAPE, batches, rounds=2)
    assert comparison.positions == sum(trace.hidden.shape[0] for batch in batches for trace in batch)
    assert {name: len(seconds) for name, seconds in comparison.seconds.items()} == dict.fromkeys(NAMES, 2)
    assert table(comparison, dict.fromkeys(NAMES, 1.0)).count("\n") == 1 + len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_trainer_unrolls_as_deep_as_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    depths, finish = 0, DraftModel.finish

    def counting(draft: DraftModel, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        nonlocal depths
        depths += 1
        return finish(draft, hidden, attended)

    monkeypatch.setattr(DraftModel, "finish", counting)
    (step,) = steps_of(name, SHAPE, [[random_request(SHAPE, 0, 6, 30)]], depths=2)
    step()
    assert depths == 2


def test_a_ratio_is_the_mean_over_rounds_with_its_interval() -> None:
    seconds = {name: [1.0, 2.0, 1.0] for name in NAMES} | {NAMES[1]: [2.0, 4.4, 2.0]}
    ratio, (low, high) = Comparison(seconds, 100).ratio(NAMES[1])
    assert ratio == pytest.approx((2.0 * 2.2 * 2.0) ** (1 / 3))
    assert low < ratio < high
    assert Comparison(seconds, 100).ratio(OURS)[0] == 1.0
    assert math.isclose(Comparison(seconds, 100).rates(OURS)[1], 50.0)

"""Runs from a published head differ in their warm-up only, and are compared seed by seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.optim.session import Session
from tests.bench.learning.warm_start import go_on, session_from_head, table
from tests.unit.training import tiny


def test_runs_with_one_seed_see_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny.target(tmp_path)
    draft, vocabulary = tiny.draft_of(target)
    checkpoint.export(draft, vocabulary.to_target, tmp_path / "head")
    examples = [each for seed in range(8) for each in examples_of(tiny.trace(seed, answer=20), tiny.VOCAB)]
    batches, step = list[tuple[float, list[int]]](), Session.step

    def recorded_step(session: Session, batch: list[Example]) -> float:
        loss = step(session, batch)
        rate: float = session._optimizer.param_groups[0]["lr"]
        batches.append((rate, [next(i for i, each in enumerate(examples) if each is e) for e in batch]))
        return loss

    monkeypatch.setattr(Session, "step", recorded_step)
    for warmup in (10, 100):
        session = session_from_head(tmp_path / "head", target, warmup, seed=1)
        assert torch.equal(session.draft.fc.weight, draft.fc.weight.to(torch.bfloat16).float())
        assert len(go_on(session, examples, {"json": examples[:2]}, steps=(1, 3))["json"]) == 2
    assert [batch for _, batch in batches[:3]] == [batch for _, batch in batches[3:]]
    assert [rate for rate, _ in batches] == pytest.approx([1e-4, 2e-4, 3e-4, 1e-5, 2e-5, 3e-5])


def test_the_table_subtracts_the_shortest_warm_up_seed_by_seed() -> None:
    short, long = [{"json": [1.0, 2.0]}, {"json": [2.0, 3.0]}], [{"json": [1.5, 2.5]}, {"json": [2.5, 3.5]}]
    lines = table({"json": 2.5}, (1, 3), {("json", 10): short, ("json", 50): long}).splitlines()
    assert lines[0].endswith("| after 1 | after 3 | mean, against 10 steps |")
    assert lines[2] == "| json | json | 10 | 2.50 | 1.50 ± 0.71 | 2.50 ± 0.71 | 0.000 ± 0.000 |"
    assert lines[3] == "| json | json | 50 | 2.50 | 2.00 ± 0.71 | 3.00 ± 0.71 | 0.500 ± 0.000 |"

"""A wide target differs from its narrow one in its width alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.initial_draft import draft_config, initial_draft, initial_vocabulary
from aurora_runtime.training.target.target_model import TargetModel
from tests.assets.wide_target import Widening, widened
from tests.bench.learning.widths import Run, Settings, table
from tests.unit.training import tiny
from tests.unit.training.model.test_unroll import decoded


def draft_without_embedding(target: TargetModel) -> DraftModel:
    """The initial draft, blind for token embeddings: at first they are random, so they differ between two widths."""
    ids = initial_vocabulary(tiny.DRAFT_VOCAB, tiny.VOCAB, target.special_tokens)
    draft = initial_draft(target, draft_config(target, tiny.DRAFT_VOCAB), ids)
    width = target.config.hidden_size
    with torch.no_grad():
        for projection in ("q_proj", "k_proj", "v_proj"):
            getattr(draft.midlayer.self_attn, projection).weight[:, :width] = 0
    return draft


@pytest.mark.parametrize("factor", [1, 3])
def test_the_initial_draft_of_a_wide_target_proposes_what_that_of_the_narrow_one_does(
    tmp_path: Path, factor: int
) -> None:
    narrow = tiny.target(tmp_path)
    widening = Widening.of(narrow.config.hidden_size, factor)
    wide = widened(narrow, widening)
    assert wide.config.hidden_size == factor * narrow.config.hidden_size
    drafts = [draft_without_embedding(target) for target in (narrow, wide)]
    trace = tiny.trace(0)
    traces = [trace, widening.trace(trace)]
    with torch.no_grad():
        first, second = (d.logits(decoded(d, t, 6, (3, 5))) for d, t in zip(drafts, traces, strict=True))
    assert torch.allclose(first, second, atol=0.05 * float(first.abs().max()))  # wide states are rounded to bf16
    assert first.std() > 0.1


def test_a_row_is_the_mean_over_seeds() -> None:
    settings = Settings("json", 160, 1, 2048)
    runs = [Run(settings, 576, 1e-3, 512, seed, (1.0, 2.0 + seed, 3.0, 3.0, 3.0), 10.0) for seed in (0, 1)]
    row = table(runs).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[1:6]] == ["576", "0.001", "512", "1.00 ± 0.00", "2.50 ± 0.71"]

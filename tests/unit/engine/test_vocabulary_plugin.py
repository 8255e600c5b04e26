"""A worker and its model share one vocabulary map, over which another map can be written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from aurora_runtime import sglang_version
from aurora_runtime.engine import vocabulary_plugin
from aurora_runtime.errors import DraftRefused, EngineMismatch


def started() -> SimpleNamespace:
    """A draft worker after ``init_lm_head``: the model's map is a plain attribute, the worker's a copy of it."""
    model = torch.nn.Module()
    model.hot_token_id = torch.tensor([0, 2, 5])
    return SimpleNamespace(draft_runner=SimpleNamespace(model=model), hot_token_id=model.hot_token_id.clone())


def test_the_worker_reads_the_map_that_is_written_into_the_model() -> None:
    worker = started()
    shared = worker.hot_token_id
    vocabulary_plugin.share_map(None, worker)
    model = worker.draft_runner.model
    assert dict(model.named_buffers()).keys() == {"hot_token_id"}, "the map is part of the checksum"
    assert not model.state_dict(), "the map is not loaded by name"
    vocabulary_plugin.replace_map(model, torch.tensor([1, 2, 5]))
    assert worker.hot_token_id is shared, "captured graphs read the same memory"
    assert shared.tolist() == [1, 3, 7]


@pytest.mark.parametrize("worker", [SimpleNamespace(hot_token_id=None), SimpleNamespace(hot_token_id=torch.ones(1))])
def test_a_draft_without_a_map_is_not_changed(worker: SimpleNamespace) -> None:
    worker.draft_runner = SimpleNamespace(model=torch.nn.Module())
    vocabulary_plugin.share_map(None, worker)
    assert not list(worker.draft_runner.model.named_buffers())


def test_a_map_of_another_size_or_dtype_is_refused_and_changes_nothing() -> None:
    worker = started()
    vocabulary_plugin.share_map(None, worker)
    for offsets in (torch.tensor([1, 2]), torch.tensor([1, 2, 5], dtype=torch.int32)):
        with pytest.raises(DraftRefused):
            vocabulary_plugin.replace_map(worker.draft_runner.model, offsets)
    assert worker.hot_token_id.tolist() == [0, 2, 5]


def test_an_engine_without_the_hook_keeps_its_map_and_names_the_missing_plugin() -> None:
    model = started().draft_runner.model
    vocabulary_plugin.replace_map(model, torch.tensor([0, 1, 3]))
    with pytest.raises(EngineMismatch, match="SGLANG_PLUGINS"):
        vocabulary_plugin.replace_map(model, torch.tensor([0, 1, 4]))
    assert model.hot_token_id.tolist() == [0, 2, 5]


def test_another_sglang_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: "0.5.24")
    with pytest.raises(EngineMismatch, match=r"0\.5\.24"):
        vocabulary_plugin.install()

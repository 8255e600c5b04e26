"""Candidates are registered only for a gain, with their own map, and once."""

from __future__ import annotations

import pytest
import torch

from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.draft_records import Registration
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training import lineage
from aurora_runtime.training.candidates import Candidates
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.held_out_set import HeldOutSet
from aurora_runtime.training.evaluation import evaluate
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.optim.vocabulary_remap import remapped
from aurora_runtime.training.target.target_model import TargetModel
from aurora_store.errors import StoreError
from tests.unit.training import tiny


def session_with_gain(registry: PodRegistry, model: TargetModel) -> tuple[Session, Candidates, HeldOutSet]:
    """A session that was trained on its own held-out set, so that a gain is certain."""
    tiny.open_lineage(registry, model, tiny.ticking_clock())
    draft, vocabulary = lineage.fetch_draft(registry, 0, model)
    last_draft = lineage.fetch_draft(registry, 0, model)
    session = Session(draft, vocabulary, Recipe(learning_rate=5e-3), torch.device("cpu"))
    held_out = HeldOutSet(8)
    for seed in range(6):
        held_out.add(seed, tuple(examples_of(tiny.trace(seed, answer=20), tiny.VOCAB)))
    settings = TrainingSpec(publish_tokens=256)
    candidates = Candidates(registry, 1, settings, 3, registry.registration(0), last_draft)
    for _ in range(40):
        session.step(held_out.newest_first())
    return session, candidates, held_out


def test_a_draft_is_registered_only_for_a_gain_and_only_once(model: TargetModel) -> None:
    registry, _ = tiny.memory_registry()
    session, candidates, held_out = session_with_gain(registry, model)
    assert not candidates.due(255, session.trained_positions)
    assert candidates.due(256, session.trained_positions)
    first = candidates.offer(session, held_out, 300)
    assert first.registration is not None
    assert first.registration.version == 1
    assert registry.checkpoint(first.registration).parent == 0
    assert not candidates.due(600, session.trained_positions)  # nothing trained since
    second = candidates.offer(session, held_out, 600)
    assert second.registration is None
    assert registry.last_version() == 1


def test_the_average_of_the_weights_is_evaluated_and_registered(model: TargetModel) -> None:
    registry, _ = tiny.memory_registry()
    session, candidates, held_out = session_with_gain(registry, model)
    trained = evaluate(session.draft, held_out.newest_first(), session.vocabulary, 3)
    served = evaluate(session.served, held_out.newest_first(), session.vocabulary, 3)
    offered = candidates.offer(session, held_out, 300)
    assert offered.held_out == served != trained
    registered, _ = lineage.fetch_draft(registry, 1, model)
    heads = [draft.lm_head.weight.bfloat16() for draft in (registered, session.served, session.draft)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_each_draft_is_evaluated_and_registered_with_its_own_map(model: TargetModel) -> None:
    registry, _ = tiny.memory_registry()
    session, candidates, held_out = session_with_gain(registry, model)
    ids = torch.arange(tiny.VOCAB - tiny.DRAFT_VOCAB, tiny.VOCAB)
    session.restore(remapped(session.state(), ids, model.head))
    session.step(held_out.newest_first())
    first, vocabulary = lineage.fetch_draft(registry, 0, model)
    before = evaluate(first, held_out.newest_first(), vocabulary, 3)
    offered = candidates.offer(session, held_out, 300)
    assert offered.registration is not None
    assert offered.registration.lineage == 1
    assert f"version 0 has {before.acceptance_length:.2f}" in offered.message
    draft, registered = lineage.fetch_draft(registry, 1, model)
    assert registered.to_target.tolist() == ids.tolist()
    after = evaluate(draft, held_out.newest_first(), registered, 3)
    assert after.coverage == offered.held_out.coverage  # type: ignore[union-attr]
    session.restore(remapped(session.state(), vocabulary.to_target, model.head))
    again = candidates.offer(session, held_out, 600)
    assert f"version 1 has {after.acceptance_length:.2f}" in again.message


def test_after_a_lost_answer_drafts_are_compared_with_the_version_that_was_registered(model: TargetModel) -> None:
    registry, _ = tiny.memory_registry()
    session, candidates, held_out = session_with_gain(registry, model)
    register = registry.register

    def lose_the_answer(registration: Registration) -> None:
        register(registration)
        raise StoreError("no answer")

    registry.register = lose_the_answer  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        candidates.offer(session, held_out, 300)
    del registry.register
    again = candidates.offer(session, held_out, 300)
    assert again.registration == registry.registration(1)
    same = candidates.offer(session, held_out, 600)
    # A stored draft has weights in bfloat16, so it may guess otherwise than the session's.
    stored, vocabulary = lineage.fetch_draft(registry, 1, model)
    length = evaluate(stored, held_out.newest_first(), vocabulary, 3).acceptance_length
    assert f"version 1 has {length:.2f}" in same.message
    assert (same.registration, registry.last_version()) == (None, 1)


def test_a_taken_number_is_skipped_and_a_crash_registers_no_draft_twice(model: TargetModel) -> None:
    registry, objects = tiny.memory_registry()
    session, candidates, held_out = session_with_gain(registry, model)
    other = registry.registration(0).model_copy(update={"version": 1})
    racing = iter([0])
    # The other trainer registers between the check and the attempt.
    registry.last_version = lambda: next(racing, 1)  # type: ignore[method-assign]
    registry.register(other)
    offered = candidates.offer(session, held_out, 300)
    assert offered.registration is not None
    assert offered.registration.version == 2
    # After a crash right after registering, only the registry knows the version.
    del registry.last_version
    before = set(objects.data)
    last_draft = lineage.fetch_draft(registry, 0, model)
    restarted = Candidates(registry, 1, TrainingSpec(), 3, registry.registration(0), last_draft)
    again = restarted.offer(session, held_out, 300)
    assert again.registration == offered.registration
    assert set(objects.data) == before

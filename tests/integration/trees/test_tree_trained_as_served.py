"""Trained as served, with trees: on an engine's traces, the training pass makes the same proposals as the engine."""

from __future__ import annotations

import pytest

from aurora_api.v1alpha1.draft import DraftSpec
from tests.integration.training.trained_pod import Served, check_proposals, serve_trained_draft

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve_trained_draft(DraftSpec(steps=3, branching=3, draft_tokens=8), tmp_path_factory.mktemp("served"))


def test_the_training_pass_proposes_the_same_tokens_as_the_engine(served: Served) -> None:
    check_proposals(served)


def test_the_served_acceptance_length_reaches_that_of_a_simulated_chain(served: Served) -> None:
    length, simulated = served.acceptance_length, served.simulated_acceptance_length()
    print(f"acceptance length served {length:.3f}, of a simulated chain {simulated:.3f}")
    assert length > 1.5
    assert length > 0.9 * simulated  # a tree mostly contains the chain

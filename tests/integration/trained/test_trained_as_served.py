"""Trained as served: on an engine's traces, the training pass makes the same proposals as the engine.

Proposals after accepted and after rejected tokens must agree, and so must the acceptance length.
"""

from __future__ import annotations

import pytest

from aurora_api.v1alpha1.draft import DraftSpec, Shape
from tests.integration.trained.trained_pod import Served, check_proposals, serve_trained_draft

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve_trained_draft(DraftSpec(steps=3, shape=Shape.FIXED), tmp_path_factory.mktemp("served"))


def test_the_training_pass_proposes_the_same_tokens_as_the_engine(served: Served) -> None:
    check_proposals(served)


def test_the_simulated_acceptance_length_is_the_served_one(served: Served) -> None:
    length, simulated = served.acceptance_length, served.simulated_acceptance_length()
    print(f"acceptance length served {length:.3f}, simulated {simulated:.3f}")
    assert length > 1.5
    assert simulated == pytest.approx(length, rel=0.1)

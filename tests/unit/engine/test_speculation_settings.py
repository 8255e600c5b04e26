"""The engine builds a state for every arm that the plugin may choose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope, PublishedHead
from aurora_runtime.engine.speculation_flags import NGRAM_TOKENS, SPECULATION_VARIABLE, Eagle3
from aurora_runtime.engine.speculation_settings import (
    LOOKUP_STEPS,
    PLACEHOLDER_VERSION,
    SpeculationSettings,
    controller_of,
    round_controller,
)


def settings(**changes: object) -> SpeculationSettings:
    return SpeculationSettings.model_validate({"state_folder": "/state", "boot": "b", "draft_steps": 3, **changes})


def test_every_arm_has_a_state(tmp_path: Path) -> None:
    controller = round_controller(settings(), tmp_path / "adaptive.json")
    steps = json.loads((tmp_path / "adaptive.json").read_text())["1"]["candidate_steps"]
    assert steps == sorted({arm.steps for arm in settings().arms})
    assert SpeculationSettings.from_json(controller.environment()[SPECULATION_VARIABLE]) == settings()


def test_without_lookup_only_the_draft_proposes() -> None:
    assert [arm.name for arm in settings(lookup=LookupScope.OFF).arms] == ["off", "draft-1", "draft-3"]


def test_a_controlled_engine_has_the_draft_of_the_spec_and_states_for_rounds(tmp_path: Path) -> None:
    controller = round_controller(settings(), tmp_path / "adaptive.json")
    arguments = Eagle3(Path("/draft"), 7, DraftSpec(steps=3), controller).arguments()
    assert (
        arguments[: len(Eagle3(Path("/draft"), 7, DraftSpec(steps=3)).arguments())]
        == Eagle3(Path("/draft"), 7, DraftSpec(steps=3)).arguments()
    )
    assert arguments[arguments.index("--speculative-adaptive-config") + 1] == str(tmp_path / "adaptive.json")


def test_the_baseline_ngram_verifies_as_many_tokens_as_the_widest_round_of_lookup() -> None:
    assert NGRAM_TOKENS == LOOKUP_STEPS + 1


@pytest.mark.parametrize(
    ("head", "untrained"),
    [(None, (PLACEHOLDER_VERSION, 0)), (PublishedHead(model="somebody/head"), (PLACEHOLDER_VERSION,))],
)
def test_the_placeholder_is_not_run_and_the_first_version_only_where_it_may_be_a_published_head(
    tmp_path: Path, head: PublishedHead | None, untrained: tuple[int, ...]
) -> None:
    variables = controller_of(DraftSpec(initial=head), tmp_path, "b").environment()
    assert SpeculationSettings.from_json(variables[SPECULATION_VARIABLE]).untrained_versions == untrained

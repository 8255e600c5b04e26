"""A published draft's card says what it descends from and what was measured, and nothing of the store's place."""

from __future__ import annotations

import pytest

from aurora_protocol.draft_records import CheckpointManifest, InitialHead
from aurora_protocol.evidence_records import Evidence
from aurora_runtime.training.heads.model_card import PublishedVersion, model_card
from tests.unit.operator.worlds import NOW, digest, evidence, lineage, registration

SECRETS = ("registry.corp", "my-bucket", "s3.internal", "because")


def card(measured: Evidence | None, initial: InitialHead | None = None) -> str:
    registered = registration(3).model_copy(update={"held_out_acceptance_length": 2.345})
    manifest = CheckpointManifest(
        lineage=1, version=3, parent=2, digest=digest(3), files=(), step=1200, trained_tokens=3000, created=NOW
    )
    made = lineage().model_copy(update={"initial": initial})
    return model_card(PublishedVersion(made, registered, manifest, measured, steps=5))


def test_the_card_names_lineage_traffic_and_evidence() -> None:
    measured = evidence(3)
    environment = measured.environment.model_copy(update={"image": "registry.corp/aurora:1"})
    text = card(measured.model_copy(update={"environment": environment}))
    for words in (
        "base_model: org/model",
        "| version | 3 of lineage 1 |",
        "| version before it | 2 |",
        "| the lineage began with | the target's weights |",
        "| traced positions trained, in tokens | 3,000 |",
        "| acceptance length on held-out traces | 2.35 tokens a round |",
        "| candidate | off | 1 | 1.620 | 1.570 to 1.670 | 5 |",
        "Verdict: Pass.",
        "Acceptance length of candidate: 2.00.",
        "--speculative-num-steps 5",
        "--speculative-num-draft-tokens 6",
    ):
        assert words in text, words
    assert not any(secret in text for secret in SECRETS)


def test_the_card_names_the_head_that_the_lineage_began_with() -> None:
    text = card(None, InitialHead(model="org/head", revision="abc", sha256=digest(7)))
    assert f"| the lineage began with | org/head, revision abc, sha256 {digest(7)} |" in text
    assert "No measurement of this version could be read." in text


def test_a_measurement_of_other_weights_does_not_count() -> None:
    text = card(evidence(3, candidate_digest=digest(4)))
    assert "other weights" in text
    assert "1.620" not in text


@pytest.mark.parametrize(
    "hardware", ["a\n# heading", "a | b", "`code`", "[x](http://evil)", "<b>", "a\u202eb", "x" * 9999]
)
def test_text_of_the_store_stays_on_one_line_without_markup(hardware: str) -> None:
    measured = evidence(3)
    environment = measured.environment.model_copy(update={"hardware": hardware})
    (line,) = (
        line
        for line in card(measured.model_copy(update={"environment": environment})).splitlines()
        if "recorded this measurement" in line
    )
    assert not set("`|<>[]#\u202e") & set(line)
    assert len(line) < 500

"""A published draft's card says what it descends from and what was measured, and nothing of the store's place."""

from __future__ import annotations

import pytest

from aurora_protocol.draft_records import CheckpointManifest, InitialHead
from aurora_protocol.evidence_records import Evidence
from aurora_runtime.training.heads.model_card import PublishedVersion, model_card
from aurora_runtime.training.heads.published_head import HEAD_DIGEST, MADE_FOR_HEAD_DIGEST
from tests.unit.operator.worlds import NOW, digest, evidence, lineage, registration

SECRETS = ("registry.corp", "my-bucket", "s3.internal", "because")


def card(measured: Evidence | None, initial: InitialHead | None = None, **of_manifest: object) -> str:
    registered = registration(3).model_copy(update={"held_out_acceptance_length": 2.345})
    manifest = CheckpointManifest(
        lineage=1, version=3, parent=2, digest=digest(3), files=(), step=1200, trained_tokens=3000, created=NOW
    )
    manifest = manifest.model_copy(update=of_manifest)
    made = lineage().model_copy(update={"initial": initial})
    return model_card(PublishedVersion(made, registered, manifest, measured, steps=5))


def test_the_card_names_the_measurement_and_nothing_of_the_stores_place() -> None:
    measured = evidence(3)
    environment = measured.environment.model_copy(update={"image": "registry.corp/aurora:1"})
    text = card(measured.model_copy(update={"environment": environment}))
    assert "| candidate | off | 1 | 1.620 | 1.570 to 1.670 | 5 |" in text
    assert "--speculative-num-draft-tokens 6" in text
    assert not any(secret in text for secret in SECRETS)


@pytest.mark.parametrize(
    ("key", "weights"),
    [
        (HEAD_DIGEST, "the published head"),
        (MADE_FOR_HEAD_DIGEST, "the target's, with the head's sizes and vocabulary map"),
    ],
)
def test_the_card_of_an_untrained_version_says_whether_the_weights_are_the_heads(key: str, weights: str) -> None:
    head = InitialHead(model="org/head", revision="abc", sha256=digest(7))
    text = card(None, head, step=0, provenance={key: head.sha256})
    assert f"| weights | {weights} |" in text
    assert "| weights |" not in card(None, None, step=0)


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
        if "holds this measurement" in line
    )
    assert not set("`|<>[]#\u202e") & set(line)
    assert len(line) < 500

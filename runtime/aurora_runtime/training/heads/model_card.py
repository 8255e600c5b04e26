"""The model card of a published draft: what it descends from, what it learned, and what was measured.

Invariant: the card names no bucket, no endpoint, no image and no user text. Text from the store gets onto one line
without markup, because somebody else may have written the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from aurora_protocol.draft_records import CheckpointManifest, Lineage, Registration
from aurora_protocol.evidence_records import Evidence, RatioEstimate
from aurora_protocol.rope_scaling import RopeScaling
from aurora_runtime.training.heads.published_head import HEAD_DIGEST

MAX_TEXT: Final = 200
_MARKUP: Final = str.maketrans(dict.fromkeys("`|<>[]*#", " "))


@dataclass(frozen=True)
class PublishedVersion:
    """A version as its card describes it."""

    lineage: Lineage
    registration: Registration
    manifest: CheckpointManifest
    evidence: Evidence | None
    steps: int


def model_card(version: PublishedVersion) -> str:
    """The card in Markdown, with the front matter that the Hugging Face hub reads."""
    target, registration = version.lineage.target, version.registration
    parts = [
        "---",
        *([] if target.model.startswith(("/", ".", "~")) else [f"base_model: {_plain(target.model)}"]),
        "tags: [eagle3, speculative-decoding, sglang]",
        "---",
        "",
        f"# EAGLE-3 draft for {_plain(target.model)}",
        "",
        "An EAGLE-3 head that Aurora trained on live traffic of the target. It proposes tokens. The target verifies",
        "each of them, so the head changes no answer.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _facts(version)),
        "",
        "## Evidence",
        "",
        *(_evidence(version.evidence, registration) if version.evidence else [_UNMEASURED]),
        "",
        "## Serve it",
        "",
        "```",
        "python -m sglang.launch_server --speculative-algorithm EAGLE3 --speculative-draft-model-path FOLDER \\",
        f"  --model-path {_plain(target.model)} --speculative-num-steps {version.steps} --speculative-eagle-topk 1 \\",
        f"  --speculative-num-draft-tokens {version.steps + 1}",
        "```",
        "",
        "A head in the format of speculators is served by vLLM, which finds the target in its `config.json`.",
    ]
    return "\n".join(parts) + "\n"


_UNMEASURED: Final = "No measurement of this version could be read."


def _facts(version: PublishedVersion) -> Iterator[tuple[str, str]]:
    lineage, registration, manifest = version.lineage, version.registration, version.manifest
    target, initial = lineage.target, lineage.initial
    yield "target", _source(target.model, target.revision)
    yield "target's config.json, sha256", target.config_sha256
    yield "target's tokenizer.json, sha256", target.tokenizer_sha256
    yield "version", f"{registration.version} of lineage {lineage.number}"
    if manifest.parent is not None:
        yield "version before it", str(manifest.parent)
    began = (
        f"{_source(initial.model, initial.revision)}, sha256 {initial.sha256}" if initial else "the target's weights"
    )
    yield "the lineage began with", began
    if initial and manifest.step == 0:
        is_head = HEAD_DIGEST in manifest.provenance
        yield "weights", "the published head" if is_head else "the target's, with the head's sizes and vocabulary map"
    yield "weights, sha256", registration.digest
    yield "traced positions trained, in tokens", f"{registration.trained_tokens:,}"
    yield "optimizer steps", f"{manifest.step:,}"
    if registration.held_out_acceptance_length is not None:
        yield "acceptance length on held-out traces", f"{registration.held_out_acceptance_length:.2f} tokens a round"
    yield "tokens that it can propose", f"{lineage.draft_vocab_size:,} of {target.vocab_size:,}"
    yield "target layers whose outputs it reads", ", ".join(map(str, lineage.aux_layers))
    if lineage.draft_sizes.rope_scaling is not None:
        yield "scaling of its rotary position embedding", _rope(lineage.draft_sizes.rope_scaling)
    yield "created", f"{manifest.created:%Y-%m-%d}"


def _rope(scaling: RopeScaling) -> str:
    original = scaling.original_max_position_embeddings
    beyond = "" if original is None else f" beyond {original:,} tokens"
    return f"{_plain(scaling.rope_type)}, factor {scaling.factor:g}{beyond}"


def _evidence(evidence: Evidence, registration: Registration) -> list[str]:
    if evidence.candidate_digest != registration.digest:
        return ["The stored measurement is of other weights, so it does not count."]
    environment = evidence.environment
    return [
        f"The store holds this measurement of the version by Aurora's gate, on {_plain(environment.hardware)}, SGLang"
        f" {_plain(environment.engine)}, {_plain(environment.dtype)}. Verdict: {evidence.verdict.kind.value}. The"
        " measurement's signature was not verified when this card was written.",
        "",
        "| throughput of | divided by | requests in flight | ratio | 95 % interval | rounds |",
        "|---|---|---|---|---|---|",
        *map(_row, evidence.verdict.ratios),
        "",
        *(f"Acceptance length of {arm.value}: {length:.2f}." for arm, length in evidence.acceptance_length.items()),
    ]


def _row(ratio: RatioEstimate) -> str:
    return (
        f"| {ratio.numerator.value} | {ratio.denominator.value} | {ratio.concurrency} | {ratio.estimate:.3f} |"
        f" {ratio.low:.3f} to {ratio.high:.3f} | {ratio.rounds} |"
    )


def _source(model: str, revision: str | None) -> str:
    return f"{_plain(model)}, revision {_plain(revision)}" if revision else _plain(model)


def _plain(text: str) -> str:
    """``text`` on one line, without markup."""
    line = " ".join(text.translate(_MARKUP).split())
    return "".join(character for character in line if character.isprintable())[:MAX_TEXT]

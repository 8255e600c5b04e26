"""SGLang's flags of speculative decoding, written once so that the validator measures what pods serve. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.engine.path_payload import LOADER


@dataclass(frozen=True)
class Eagle3:
    """A swappable draft in ``folder``, used as ``spec`` says. The engine reports ``version`` as the draft's version."""

    folder: Path
    version: int
    spec: DraftSpec

    def arguments(self) -> list[str]:
        return [
            *("--speculative-algorithm", self.spec.architecture.value),
            *("--speculative-draft-model-path", str(self.folder)),
            *("--speculative-num-steps", str(self.spec.steps)),
            *("--speculative-eagle-topk", str(self.spec.branching)),
            *("--speculative-num-draft-tokens", str(self.spec.tokens_per_round)),
            *("--custom-weight-loader", LOADER, "--weight-version", str(self.version)),
        ]


@dataclass(frozen=True)
class Ngram:
    """SGLang's NGRAM speculation: it needs no draft, and proposes continuations of text seen before."""

    draft_tokens: int

    def arguments(self) -> list[str]:
        return ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", str(self.draft_tokens)]

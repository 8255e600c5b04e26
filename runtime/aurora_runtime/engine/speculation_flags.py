"""SGLang's flags of speculative decoding: pure, and spelt once, so that what is measured is what is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.engine.path_payload import LOADER


@dataclass(frozen=True)
class Eagle3:
    """A draft in ``folder``, used as ``spec`` says and swappable; ``version`` is what the engine will report."""

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
    """No draft model: continuations of what was seen before."""

    draft_tokens: int

    def arguments(self) -> list[str]:
        return ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", str(self.draft_tokens)]

"""SGLang's flags of speculative decoding, written once so that the validator measures what pods serve. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aurora_api.v1alpha1.draft import ARCHITECTURE, DraftSpec
from aurora_runtime.engine.draft_update import LOADER

SPECULATION_VARIABLE: Final = "AURORA_SPECULATION"
"""The variable with the settings of the plugin ``aurora_speculation``. Without it the plugin does nothing."""
SPECULATION_PLUGIN: Final = "aurora_speculation"
UNQUANTIZED: Final = "unquant"
"""SGLang's word for a model without quantization (sglang/srt/arg_groups/choices.py:65).

By default a draft takes the target's ``--quantization`` (sglang/srt/arg_groups/serving_hook.py:685), and a swap cannot
write into quantized parameters. The flag changes nothing for other targets: the quantization that a checkpoint's own
configuration names is never the draft's.
"""

NGRAM_TOKENS: Final = 12
"""Tokens that the baseline NGRAM verifies for each request in a round: as many as SGLang's NGRAM does by default
(sglang/srt/arg_groups/speculative_hook.py:1314), and as the widest round of our lookup.

The draft's number would be too small: where answers repeat earlier answers, NGRAM has more tokens accepted than a draft
proposes.
"""


@dataclass(frozen=True)
class RoundController:
    """The speculation plugin decides the shape of each round.

    Attributes:
        adaptive_config: file with the numbers of steps for which SGLang builds runtime states.
        settings: the plugin's settings as JSON.
    """

    adaptive_config: Path
    settings: str

    def arguments(self) -> list[str]:
        """SGLang chooses states by its own rule under these flags; the plugin replaces the rule."""
        return ["--speculative-adaptive", "--speculative-adaptive-config", str(self.adaptive_config)]

    def environment(self) -> Mapping[str, str]:
        return {SPECULATION_VARIABLE: self.settings}


@dataclass(frozen=True)
class Eagle3:
    """A swappable draft in ``folder``, used as ``spec`` says. The engine reports ``version`` as the draft's version.

    With a ``controller`` the shape of ``spec`` bounds the draft's proposals. Without, every round has this shape.
    """

    folder: Path
    version: int
    spec: DraftSpec
    controller: RoundController | None = None

    def arguments(self) -> list[str]:
        return [
            *("--speculative-algorithm", ARCHITECTURE),
            *("--speculative-draft-model-path", str(self.folder)),
            *("--speculative-draft-model-quantization", UNQUANTIZED),
            *("--speculative-num-steps", str(self.spec.steps)),
            *("--speculative-eagle-topk", "1"),
            *("--speculative-num-draft-tokens", str(self.spec.tokens_per_round)),
            *("--custom-weight-loader", LOADER, "--weight-version", str(self.version)),
            *([] if self.controller is None else self.controller.arguments()),
        ]


@dataclass(frozen=True)
class Ngram:
    """SGLang's NGRAM speculation: it needs no draft, and proposes continuations of text seen before."""

    draft_tokens: int

    def arguments(self) -> list[str]:
        return ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", str(self.draft_tokens)]

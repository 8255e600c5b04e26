"""The objects that all parts of one agent share: the pod's folder, its engine and its drafts."""

from __future__ import annotations

from dataclasses import dataclass

from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.serving.agent.draft_cache import DraftCache
from aurora_runtime.serving.pod_files import PodFolder


@dataclass(frozen=True)
class PodContext:
    """One inference pod. ``draft_tokens`` is the number of tokens that a verify round checks."""

    name: str
    folder: PodFolder
    engine: SGLangClient
    drafts: DraftCache
    draft_tokens: int

"""The values that all parts of one agent share: the pod's folder, its engine, its drafts, the token of its callers."""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.serving.agent.draft_cache import DraftCache
from aurora_runtime.serving.pod_files import PodFolder


@dataclass(frozen=True)
class PodContext:
    """One inference pod."""

    name: str
    folder: PodFolder
    engine: SGLangClient
    drafts: DraftCache


class AgentToken:
    """The token that the operator and the validators show to the agent.

    The kubelet replaces the mounted file after the Secret was made anew. An agent that kept its first token would
    refuse the operator until its pod ends. So the file, which lies in memory, is read for every request.

    Args:
        read: reads the mounted file.

    Raises :class:`OSError` when the file cannot be read, and :class:`ValueError` when it is empty.
    """

    def __init__(self, read: Callable[[], str]) -> None:
        self._read, self._last = read, read().strip()
        if not self._last:
            raise ValueError("the agent's token is empty")

    @property
    def value(self) -> str:
        """The token that is accepted now. A file that is missing or empty changes nothing."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self._last = self._read().strip() or self._last
        return self._last

    def allows(self, authorization: bytes) -> bool:
        """Whether the header ``authorization`` shows the token. Compared in constant time."""
        return hmac.compare_digest(authorization, f"Bearer {self.value}".encode())

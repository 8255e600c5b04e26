"""What the hooks keep about the one worker of their process, once it has started."""

from __future__ import annotations

from typing import Any, Final

from aurora_runtime.conversations import may_share
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.serving.chat_template import marker_of
from aurora_runtime.serving.speculation.lookup_index import LookupIndex
from aurora_runtime.serving.speculation.worker.draft_progress import DraftProgress
from aurora_runtime.serving.speculation.worker.early_results import EarlyResults
from aurora_runtime.serving.speculation.worker.engine_requirements import is_overlapping, pending_buffer
from aurora_runtime.serving.speculation.worker.rank_agreement import RankAgreement
from aurora_runtime.serving.speculation.worker.request_texts import RequestTexts

SWITCH_NOTE: Final = "adaptive_spec.restore"
"""The source of SGLang's notes about switches (``EAGLEWorkerV2.apply_runtime_state``)."""


class EngineControl:
    """The state of the hooks.

    Attributes:
        overlaps: whether a round is launched before the scheduler has processed the one before.
        results: the last round's tokens, under overlap scheduling.
    """

    def __init__(self, worker: Any, settings: SpeculationSettings) -> None:
        self.worker = worker
        self.draft_worker = worker.draft_worker
        self.ranks = RankAgreement.of_engine()
        buffer = pending_buffer(worker, settings)
        self.progress = DraftProgress(buffer, single_rank=self.ranks.is_single)
        vocabulary = worker.target_worker.model_config.vocab_size
        traffic_key, marker = bytes.fromhex(settings.traffic_key), marker_of(worker)
        index = LookupIndex(
            settings.lookup,
            settings.lookup_tokens,
            vocabulary_size=vocabulary,
            shares=lambda prompt: may_share(prompt, marker, traffic_key),
        )
        self.texts = RequestTexts(index)
        self.overlaps = is_overlapping()
        self.results: EarlyResults | None = None

    def activate(self, steps: int) -> None:
        """Switch SGLang to its runtime state for ``steps``."""
        from sglang.srt.runtime_context import get_context

        self.worker.adaptive_controller._activate(steps)
        keep_last_note(getattr(get_context(), "_overrides_log", []))


def keep_last_note(notes: list[tuple[str, Any]]) -> None:
    """Remove SGLang's note of the switch before the last one from its ``notes`` of overridden settings.

    SGLang keeps a note of every switch for as long as the process runs (``RuntimeContext.override``), because its own
    rule seldom switches. Here several notes a second would become a hundred megabytes a day. A later note overrides the
    same settings as the one before.
    """
    if len(notes) > 1 and notes[-1][0] == notes[-2][0] == SWITCH_NOTE:
        del notes[-2]

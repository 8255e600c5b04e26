"""When a draft is offered for validation: measurably better on held-out requests than the last one offered.

Invariant: both are measured on the same requests at the same moment, each with its own vocabulary map, so drift of the
traffic cannot fake or hide a gain; the number of a version is taken only after its files are complete.
"""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.draft_records import INITIAL_VERSION, CheckpointManifest, Registration
from aurora_runtime.training import lineage
from aurora_runtime.training.data.held_out import HeldOutSet
from aurora_runtime.training.evaluation import HeldOut, evaluate
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.session import Session
from aurora_store import Registry
from aurora_store.errors import ObjectExists

MIN_REQUESTS: Final = 4
"""Fewer held-out requests say nothing."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation showed, and the registration when the draft was offered."""

    candidate: HeldOut | None
    registration: Registration | None
    message: str


class Candidates:
    """Compares what would be served with the last registered version and registers the next one."""

    def __init__(
        self,
        registry: Registry,
        lineage_number: int,
        settings: TrainingSpec,
        steps: int,
        last: Registration,
        held: tuple[DraftModel, VocabularyMap],
    ) -> None:
        """``held`` is the draft of ``last`` with its map."""
        self._registry, self.lineage, self._settings, self._steps = registry, lineage_number, settings, steps
        self.last, self._held = last, held
        self._looked_tokens, self._looked_step, self._looked_at = last.trained_tokens, 0, time.monotonic()

    def due(self, trained_tokens: int, step: int) -> bool:
        """Whether enough positions or time have passed since the last comparison."""
        if step == self._looked_step:
            return False
        tokens = trained_tokens - self._looked_tokens >= self._settings.publish_tokens
        return tokens or time.monotonic() - self._looked_at >= self._settings.publish_seconds

    def offer(self, session: Session, held_out: HeldOutSet, trained_tokens: int) -> Evaluation:
        """Evaluate, and register when the gain suffices."""
        self._looked_tokens, self._looked_step, self._looked_at = trained_tokens, session.steps, time.monotonic()
        if len(held_out) < MIN_REQUESTS:
            return Evaluation(None, None, f"waiting for held-out requests: {len(held_out)} of {MIN_REQUESTS}")
        examples = held_out.newest_first()
        new = evaluate(session.served, examples, session.vocabulary, self._steps)
        held, vocabulary = self._held
        old = evaluate(held.to(session.device), examples[: new.requests], vocabulary, self._steps)
        gain = new.accept_length - old.accept_length
        seen = f"held-out acceptance {new.accept_length:.2f}, version {self.last.version} has {old.accept_length:.2f}"
        log.info("%s (%d requests)", seen, new.requests)
        if gain < float(Decimal(self._settings.min_gain)):
            return Evaluation(new, None, f"{seen}: no candidate")
        self.last = self._register(session, new.accept_length, trained_tokens)
        log.info("registered version %d", self.last.version)
        return Evaluation(new, self.last, f"{seen}: registered version {self.last.version}")

    def _register(self, session: Session, accept_length: float, trained_tokens: int) -> Registration:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            exported = checkpoint.export(session.served, session.vocabulary.to_target, folder)
            newest = self._registry.last_version()
            number = INITIAL_VERSION if newest is None else newest
            if self._registry.registration(number).digest == exported.digest:
                return self._registry.registration(number)  # ours, from before a crash
            while True:
                number += 1
                manifest = CheckpointManifest(
                    lineage=self.lineage,
                    version=number,
                    parent=self.last.version,
                    digest=exported.digest,
                    files=exported.files,
                    step=session.steps,
                    trained_tokens=trained_tokens,
                    provenance=lineage.provenance(),
                    created=lineage.utc_now(),
                )
                try:
                    registration = lineage.publish(self._registry, folder, manifest, accept_length)
                except ObjectExists:
                    log.warning("version %d was taken by another trainer; taking the next", number)
                    continue
                draft, ids = checkpoint.load(folder, session.served.embedding)
                self._held = draft, VocabularyMap.of(ids, draft.config.vocab_size)
                return registration

"""Registers a candidate when the draft is measurably better on held-out requests than the last registered version.

Invariants: both drafts are measured on the same requests at the same moment, each with its own vocabulary map, so that
drift of the traffic cannot fake or hide a gain. A version's number is taken only after its files are complete.
"""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.draft_records import INITIAL_VERSION, CheckpointManifest, Registration
from aurora_protocol.pod_settings import PUBLISH_SECONDS
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training import lineage
from aurora_runtime.training.data.held_out_set import HeldOutSet, newest_within
from aurora_runtime.training.evaluation import HeldOutResult, evaluate
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.session import Session
from aurora_store.errors import ObjectExists

MIN_GAIN: Final = 0.02
"""Tokens per verify round by which a draft must beat the last offered version on held-out requests: 2.52 after 2.50."""
MIN_Z_SCORE: Final = 1.6
"""Standard errors of the paired difference that the gain must reach too. Of two equal drafts one in eighteen is then
offered, and the gate measures it for nothing."""
PATIENT_SHARE: Final = 0.1
"""A comparison after :attr:`TrainerSettings.publish_seconds` needs this share of ``training.publishTokens`` in trained
positions, replayed ones included."""
MIN_HELD_OUT_REQUESTS: Final = 4
"""Fewer requests are too few for a comparison."""
COMPARED_TOKENS: Final = 16_384
"""Most answer tokens on which two drafts are compared. A count, because a busy machine would judge by fewer requests if
time were the bound."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """The result of comparing the draft with the last registered version."""

    held_out: HeldOutResult | None  # the draft's; None while there are too few held-out requests
    registration: Registration | None  # the draft's, if it gained enough to become a candidate
    message: str


class Candidates:
    """Compares the draft that would be served with the last registered version, and registers the next version."""

    def __init__(
        self,
        registry: PodRegistry,
        lineage_number: int,
        spec: TrainingSpec,
        draft_steps: int,
        last: Registration,
        last_draft: tuple[DraftModel, VocabularyMap],
        publish_seconds: float = PUBLISH_SECONDS,
    ) -> None:
        """``last`` is the last registered version, ``last_draft`` its draft with its vocabulary map."""
        self._registry, self.lineage_number, self._spec = registry, lineage_number, spec
        self._draft_steps, self.last, self._last_draft = draft_steps, last, last_draft
        self._publish_seconds, self._compared_tokens, self._compared_positions = publish_seconds, last.trained_tokens, 0
        self._compared_at = time.monotonic()

    def due(self, trained_tokens: int, trained_positions: int) -> bool:
        """Whether the draft saw enough new positions since the last comparison, or trained enough in a long time.

        Args:
            trained_tokens: distinct positions, each counted once.
            trained_positions: with every repetition.
        """
        trained = trained_positions - self._compared_positions
        if trained == 0:
            return False
        if trained_tokens - self._compared_tokens >= self._spec.publish_tokens:
            return True
        waited = time.monotonic() - self._compared_at >= self._publish_seconds
        return waited and trained >= PATIENT_SHARE * self._spec.publish_tokens

    def offer(self, session: Session, held_out: HeldOutSet, trained_tokens: int) -> Comparison:
        """Compare ``session``'s draft with the last version, and register it when the gain suffices."""
        self._compared_tokens, self._compared_positions = trained_tokens, session.trained_positions
        self._compared_at = time.monotonic()
        if len(held_out) < MIN_HELD_OUT_REQUESTS:
            message = f"waiting for held-out requests: {len(held_out)} of {MIN_HELD_OUT_REQUESTS}"
            return Comparison(None, None, message)
        examples = newest_within(held_out.newest_first(), COMPARED_TOKENS)
        new = evaluate(session.served, examples, session.vocabulary, self._draft_steps)
        draft, vocabulary = self._last_draft
        draft.embedding = session.draft.embedding  # shared, because a copy on the device takes a gigabyte
        old = evaluate(draft.to(session.device), examples, vocabulary, self._draft_steps)
        old_length, new_length = old.acceptance_length, new.acceptance_length
        lengths = f"held-out acceptance length {new_length:.2f}, version {self.last.version} has {old_length:.2f}"
        log.info("%s (%d answer tokens)", lengths, sum(new.tokens))
        if new_length - old_length < max(MIN_GAIN, MIN_Z_SCORE * new.error_of_gain(old)):
            return Comparison(new, None, f"{lengths}: no candidate")
        self.last = self._register(session, new_length, trained_tokens)
        log.info("registered version %d", self.last.version)
        return Comparison(new, self.last, f"{lengths}: registered version {self.last.version}")

    def _register(self, session: Session, acceptance_length: float, trained_tokens: int) -> Registration:
        """Register the draft under the next free version."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            exported = checkpoint.export(session.served, session.vocabulary.to_target, folder)
            newest = self._registry.last_version()
            number = INITIAL_VERSION if newest is None else newest
            draft, ids = checkpoint.load(folder, session.served.embedding)
            own = draft, VocabularyMap.of(ids, draft.config.vocab_size)
            stored = self._registry.registration(number)
            if stored.digest == exported.digest:  # registered by this trainer before a crash, or before a lost answer
                self._last_draft = own
                return stored
            while True:
                number += 1
                manifest = CheckpointManifest(
                    lineage=self.lineage_number,
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
                    registration = lineage.publish(self._registry, folder, manifest, acceptance_length)
                except ObjectExists:
                    log.warning("version %d was taken by another trainer; trying the next number", number)
                    continue
                self._last_draft = own
                return registration

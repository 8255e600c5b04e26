"""Changes the draft's vocabulary map when the counted answers show that this is worthwhile.

In the loop the review follows the comparison of drafts, which still measured the old map. The next comparison measures
the new map.
"""

from __future__ import annotations

import logging

from torch import Tensor

from aurora_runtime.training.optim.vocabulary_remap import remapped
from aurora_runtime.training.progress import Progress
from aurora_runtime.training.state.learning_state import LearningState

log = logging.getLogger(__name__)


class VocabularyReview:
    """Applies the changes that :class:`VocabularyCoverage` proposes."""

    def __init__(self, learning: LearningState, target_head: Tensor, progress: Progress) -> None:
        """``target_head`` ``[vocab, H]``: tokens that come into the map start from the target's rows."""
        self._learning, self._target_head, self._progress = learning, target_head, progress

    def review(self) -> None:
        """Change the session's map if a change is due and worthwhile, and report the change."""
        learning, session = self._learning, self._learning.session
        change = learning.coverage.review(session.vocabulary, learning.held_out.newest_first())
        if change is None:
            return
        session.restore(remapped(session.state(), change.ids, self._target_head))
        self._progress.record_vocabulary_change(change)
        log.info("%s", change)

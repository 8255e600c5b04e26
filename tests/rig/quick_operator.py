"""``python -m tests.rig.quick_operator``: the operator with short pauses, for tests that would wait for its clocks.

Only the pauses between two reconciles and between two reads of the store, and the wait for a node, are shorter. The
order of everything that the operator does is the same. The real pauses run in ``tests/integration/installations``, in
``tests/integration/chart`` and in the tests on a whole cluster.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from aurora_operator import main, reconciler
from aurora_operator.observe.store import store_access
from aurora_operator.plan import operator_upgrade

LONGEST_REST_SECONDS: Final = 10.0
"""The longest time between two reconciles of a speculator at rest."""


def shorten_pauses() -> None:
    """Set the pauses in this process. A loaded machine still finishes one reconcile before the next is due."""
    reconciler.BUSY_POLL_SECONDS = 1.0
    reconciler.WATCHFUL_POLL_SECONDS = 3.0
    reconciler.REST_POLL_SECONDS = LONGEST_REST_SECONDS / (1 + reconciler.REST_JITTER)
    store_access.MIN_PAUSE_SECONDS = 1.0
    store_access.REST_SECONDS = 2.0
    operator_upgrade.SURGE_WAIT = timedelta(seconds=5)


if __name__ == "__main__":
    shorten_pauses()
    main.main()

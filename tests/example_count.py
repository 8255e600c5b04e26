"""How many examples a property test tries: few in the fast checks, all in ``AURORA_ALL_EXAMPLES=1 make unit``.

Where ``CI`` is set, Hypothesis tries the same examples in each run, so that a change fails for its own reason only.
"""

from __future__ import annotations

import os
from typing import Final

ALL_EXAMPLES: Final = "AURORA_ALL_EXAMPLES"
"""Environment variable that asks for every example. Programs that a test starts inherit it."""
FEWEST: Final = 10


def example_count(full: int) -> int:
    """``full`` in a thorough run, else a quarter of it, but at least :data:`FEWEST` where ``full`` allows it."""
    return full if os.environ.get(ALL_EXAMPLES) else min(full, max(FEWEST, full // 4))


def seed_count(full: int) -> int:
    """``full`` in a thorough run, else 1: for simulations that take seconds for each seed."""
    return full if os.environ.get(ALL_EXAMPLES) else 1

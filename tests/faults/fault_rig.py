"""The rig of the fault tests: one speculator under traffic, drafts to offer to it, and the results so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.results_table import FaultResult
from tests.rig.running_speculator import RunningSpeculator
from tests.traffic.driver import TrafficDriver
from tests.traffic.prompts import Domain

NAME = "faults"
SPEC: dict[str, Any] = {
    "draft": {"lookup": "Request"},
    "training": {"publishTokens": 1_000_000_000},
    "validation": {"concurrencies": [1], "maxNewTokens": 32},
    "rollout": {"analysis": {"watchSeconds": 60}},
}
"""The trainer learns but publishes nothing, so that the tests decide which draft is offered, and when. One
concurrency is measured soonest. Clients ask for much the same again and again. With the default lookup a draft would
propose too seldom for a judgement."""


@dataclass
class FaultRig(RunningSpeculator):
    """The speculator :data:`NAME`, its traffic, and the results so far."""

    driver: TrafficDriver
    specialists: dict[Domain, Path]
    """Drafts that were trained on one domain each."""
    scratch: Path
    results: list[FaultResult] = field(default_factory=list)

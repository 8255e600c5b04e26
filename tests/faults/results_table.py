"""The measured cost of every fault, and the table of them that docs/results/faults.md quotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.traffic.report import Summary


@dataclass(frozen=True)
class ClientCounts:
    """The clients' counts during a fault: requests that ended, attempts that were retried, and requests that failed."""

    requests: int
    retries: int
    failed: int

    @classmethod
    def between(cls, before: Summary, after: Summary) -> ClientCounts:
        return cls(
            requests=after.requests - before.requests,
            retries=sum(after.retries.values()) - sum(before.retries.values()),
            failed=after.failed - before.failed,
        )


@dataclass(frozen=True)
class FaultResult:
    """One fault in one state of the speculator, and its cost."""

    fault: str
    state: str
    recovery_seconds: float
    """Until every part is healthy again: from the fault, or from its end if the fault lasts."""
    clients: ClientCounts
    state_afterwards: str = ""


def markdown_table(results: Sequence[FaultResult]) -> str:
    """One row per fault and state."""
    lines = [
        "| fault | state | recovery, s | requests | retries | failed | afterwards |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        cells = (
            result.fault,
            result.state,
            f"{result.recovery_seconds:.1f}",
            result.clients.requests,
            result.clients.retries,
            result.clients.failed,
            result.state_afterwards,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)

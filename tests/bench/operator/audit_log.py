"""Counts the operator's API requests in the API server's audit log.

The audit log names the user of each request, which the server's metrics do not. A watch is counted once, when it
begins. Invariant: a request counts in the window in which the server received it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

READ_VERBS, WRITE_VERBS = ("get", "list"), ("create", "update", "patch", "delete", "deletecollection")
ELECTION = "leases"
"""Leader election renews its Lease on a clock. These requests do not depend on the number of speculators."""


def policy(user: str) -> str:
    """An audit policy that logs the requests of ``user`` alone, without bodies."""
    rules = [{"level": "Metadata", "users": [user]}, {"level": "None"}]
    made = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
    return json.dumps(made)


@dataclass(frozen=True)
class Requests:
    """API requests of a window."""

    by_verb: Counter[str]
    """``<verb> <resource>`` -> requests. Resources include the subresource: ``patch auroraspeculators/status``."""

    def count(self, verbs: tuple[str, ...]) -> int:
        """Requests with one of ``verbs``, leader election excluded."""
        return sum(
            count
            for name, count in self.by_verb.items()
            if name.split()[0] in verbs and not name.endswith(f" {ELECTION}")
        )

    @property
    def election(self) -> int:
        return sum(count for name, count in self.by_verb.items() if name.endswith(f" {ELECTION}"))


class AuditLog:
    """Reads windows of the log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.begin()

    def begin(self) -> None:
        """Begin a window now."""
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._started = datetime.now(UTC)

    def requests(self) -> Requests:
        """The requests since :meth:`begin`."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().splitlines()
        return Requests(count_requests(lines, self._started))


def count_requests(lines: list[bytes], started: datetime) -> Counter[str]:
    """``<verb> <resource>`` -> requests that were received after ``started``. The last line may be cut short."""
    counts: Counter[str] = Counter()
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        watching = event["verb"] == "watch"
        counted = event["stage"] == ("ResponseStarted" if watching else "ResponseComplete")
        if counted and datetime.fromisoformat(event["requestReceivedTimestamp"]) >= started:
            counts[f"{event['verb']} {_resource(event)}"] += 1
    return counts


def _resource(event: dict[str, dict[str, str]]) -> str:
    reference = event.get("objectRef")
    if not reference:
        return str(event["requestURI"]).split("?")[0]
    return "/".join(part for part in (reference.get("resource"), reference.get("subresource")) if part)

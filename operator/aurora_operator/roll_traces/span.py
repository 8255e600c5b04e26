"""A finished span, and the ids by which the spans of one draft version form one trace. Pure.

Invariant: ids follow from the speculator's uid, the version and the stored times alone. An operator that restarts, and
another one that leads now, therefore go on with the same trace, and nothing must be stored for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from aurora_operator.children.owner import Owner

AttributeValue = str | int | float

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**63 - 1
"""Limits of the protocol. A collector refuses the whole batch of a span with a larger number."""
MAX_TEXT_CHARACTERS: Final = 1024
"""Limit of a text in a span. Reasons hold messages of agents and of Kubernetes."""


@dataclass(frozen=True)
class Span:
    """One finished phase of a version's life. ``end`` is never before ``start``."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits."""
    parent_id: str
    """The id of another span of this trace. Empty for the root."""
    name: str
    start: datetime
    end: datetime
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    error: str = ""
    """Why the phase failed. Empty: it did not."""


@dataclass(frozen=True)
class VersionTrace:
    """The trace of one draft version."""

    owner: Owner
    version: int

    @property
    def trace_id(self) -> str:
        return _digest(self.owner.uid, self.version)[:32]

    @property
    def root_id(self) -> str:
        return self.span_id("offer")

    def span_id(self, *parts: str | int) -> str:
        """The id of the span that ``parts`` tell from all others of this trace."""
        return _digest(self.trace_id, *parts)[:16]

    def span(
        self,
        span_id: str,
        name: str,
        start: datetime | None,
        end: datetime,
        attributes: Mapping[str, AttributeValue | None],
        *,
        parent_id: str | None = None,
        error: str = "",
    ) -> Span:
        """A span of this version.

        Args:
            start: None, or later than ``end`` because a clock was set: the span has no length.
            attributes: those that are None or empty are left out. Long texts and large integers, which an agent or a
                record may hold, are cut to the limits.
            parent_id: default: the root.
        """
        common: dict[str, AttributeValue] = {
            "k8s.namespace.name": self.owner.namespace,
            "aurora.speculator": self.owner.name,
            "aurora.version": self.version,
        }
        known = {name: _clipped(value) for name, value in attributes.items() if value is not None and value != ""}
        return Span(
            trace_id=self.trace_id,
            span_id=span_id,
            parent_id=self.root_id if parent_id is None else parent_id,
            name=name,
            start=end if start is None else min(start, end),
            end=end,
            attributes={**common, **known},
            error=error[:MAX_TEXT_CHARACTERS],
        )


def nanoseconds(time: datetime) -> int:
    """Nanoseconds since 1970, within the limits of the protocol. A foreign time may be of any year."""
    return min(max((time - EPOCH) // timedelta(microseconds=1) * 1000, 0), MAX_INTEGER)


def time_key(time: datetime | None) -> str:
    """A stored time as a part of an id: the same for every way in which the time is written."""
    return "" if time is None else str(nanoseconds(time))


def _clipped(value: AttributeValue) -> AttributeValue:
    if isinstance(value, str):
        return value[:MAX_TEXT_CHARACTERS]
    return min(max(value, MIN_INTEGER), MAX_INTEGER) if isinstance(value, int) else value


def _digest(*parts: str | int) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()

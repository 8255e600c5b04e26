"""What a report says, as plain values: no HTML, no record of the store.

Why: a test can check every figure without parsing a page, and the page computes nothing.

Invariants: every number is finite, and every time is in UTC. A figure that is not known is None or absent, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from aurora_protocol.evidence_records import Arm, VerdictKind


def utc(moment: datetime) -> datetime:
    """``moment`` in UTC, as all times of a report are."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # in the first or the last hours of the calendar
        return moment.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Figure:
    """One figure at the top of the page."""

    name: str
    value: str
    """Empty: not known."""
    note: str = ""
    """What the figure is, or where it comes from."""


@dataclass(frozen=True)
class Ratio:
    """The throughput of one arm over another at one concurrency, with its 95 % interval."""

    numerator: Arm
    denominator: Arm
    concurrency: int
    estimate: float
    low: float
    high: float
    rounds: int
    paired: bool


@dataclass(frozen=True)
class Throughput:
    """Answer tokens per second of one arm at one concurrency, over all batches of a measurement."""

    arm: Arm
    concurrency: int
    tokens_per_second: float
    batches: int
    failures: int
    cached: bool = False
    """Whether it was measured at another time than the candidate."""


@dataclass(frozen=True)
class Answers:
    """How many greedy answers of one arm equal those of another."""

    arm: Arm
    reference: Arm
    prompts: int
    identical: int
    near_ties: int
    different: int


@dataclass(frozen=True)
class Measurement:
    """One attempt at measuring one version."""

    version: int
    attempt: int
    active_version: int
    verdict: VerdictKind
    reasons: tuple[str, ...]
    doubt: str
    """Why the samples do not show the stated Pass; empty when they do, or when nothing is passed."""
    ratios: tuple[Ratio, ...]
    throughputs: tuple[Throughput, ...]
    answers: tuple[Answers, ...]
    acceptance_length: tuple[tuple[Arm, float], ...]
    machine: str
    engine: str
    draft: str
    started: datetime
    finished: datetime

    @property
    def seconds(self) -> float:
        return max(0.0, (self.finished - self.started).total_seconds())

    def ratio(self, numerator: Arm, denominator: Arm, concurrency: int) -> Ratio | None:
        """The estimate for these arms at this concurrency, if the measurement has one."""
        wanted = (numerator, denominator, concurrency)
        return next((one for one in self.ratios if (one.numerator, one.denominator, one.concurrency) == wanted), None)


@dataclass(frozen=True)
class VersionSpeed:
    """The throughput of one version over no speculation, one ratio for each concurrency."""

    version: int
    ratios: tuple[Ratio, ...]
    outcome: str
    """The verdict of its own measurement, or in which measurement it was the active version."""


@dataclass(frozen=True)
class AcceptancePoint:
    """Answer tokens per verify round, bonus token included, after so many learned tokens."""

    learned_tokens: float
    accept_length: float
    weight: float = 1.0
    """Verify rounds behind the figure."""


@dataclass(frozen=True)
class Activation:
    """A version became active after so many learned tokens."""

    version: int
    learned_tokens: float


class ShapeKind(StrEnum):
    """How a series of shapes is drawn."""

    DRAFT = "draft"
    LOOKUP = "lookup"
    NO_PROPOSAL = "no proposal"
    OFF = "off"


@dataclass(frozen=True)
class ShapeSeries:
    """Shapes of verify rounds that a chart shows as one."""

    name: str
    kind: ShapeKind
    steps: tuple[int, ...]
    """Tokens a round besides the request's last one."""


@dataclass(frozen=True)
class TrafficBin:
    """Stored traces of one stretch of time in which shards were written."""

    start: datetime
    end: datetime
    from_draft: float
    """Share of the answer tokens that the draft proposed and the target accepted."""
    from_lookup: float
    """The same of lookup, in shards that tell its tokens apart."""
    from_target: float
    """Share of the answer tokens that the target chose itself."""
    rest: float
    """Share of the answer tokens in older shards that are either tokens of lookup or first tokens of an answer."""
    proposed_per_round: float
    """Tokens that the draft proposed per verify round."""
    shapes: tuple[float, ...]
    """Share of the rounds that each series of :class:`Traffic` had. Empty: no shard of the stretch says it."""


@dataclass(frozen=True)
class Traffic:
    """Figures about live traffic, from the manifests of stored shards."""

    bins: tuple[TrafficBin, ...] = ()
    """Oldest first. All stretches are equally long. A stretch without a shard has none."""
    series: tuple[ShapeSeries, ...] = ()
    shards: int = 0
    """Shards behind the figures."""
    without_shapes: int = 0
    """Those of them that do not say which shapes their rounds had."""


class DecisionKind(StrEnum):
    """How a decision is drawn."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    REJECTED = "rejected"
    PERSON = "by a person"
    OTHER = "other"


@dataclass(frozen=True)
class Decision:
    """One decision about a version."""

    time: datetime
    kind: DecisionKind
    event: str
    version: int
    message: str
    source: str
    """Where it is recorded: channel or status."""


@dataclass(frozen=True)
class ServedSpan:
    """A stretch of time in which one version was active."""

    version: int
    start: datetime
    end: datetime


@dataclass(frozen=True)
class TrainedVersion:
    """What training had done when a version was registered."""

    version: int
    created: datetime
    learned_tokens: int
    step: int | None
    held_out_accept_length: float | None
    verdict: VerdictKind | None
    served: bool
    measuring_seconds: float | None


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    name: str
    namespace: str
    target: str
    made: datetime
    ready: str
    """The condition Ready in words."""
    figures: tuple[Figure, ...]
    measurements: tuple[Measurement, ...]
    """The last attempt at each version."""
    earlier: tuple[Measurement, ...]
    """The attempts before the last one of each version."""
    speeds: tuple[VersionSpeed, ...]
    held_out: tuple[AcceptancePoint, ...]
    live: tuple[AcceptancePoint, ...]
    activations: tuple[Activation, ...]
    traffic: Traffic
    decisions: tuple[Decision, ...]
    served: tuple[ServedSpan, ...]
    versions: tuple[TrainedVersion, ...]
    training: tuple[Figure, ...]
    coverage: float | None
    """Share of held-out answer tokens that the draft's vocabulary holds."""
    unknown: tuple[str, ...]
    """Facts that no record holds, and records that were left out: one sentence each."""

    @property
    def concurrencies(self) -> tuple[int, ...]:
        """Concurrencies of all measurements, in order."""
        return tuple(sorted({one.concurrency for measured in self.measurements for one in measured.throughputs}))

    @property
    def served_versions(self) -> frozenset[int]:
        return frozenset(span.version for span in self.served)

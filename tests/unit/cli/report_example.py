"""An invented speculator with a week of records, for tests of the report.

The figures are made up: a draft that learns, one version that is rolled back, one that a person pins, and traffic that
turns to another domain on the fifth day.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import HistoryEntry, SpeculatorStatus, TrainingStatus, VersionStatus
from aurora_cli.report.records import Records
from aurora_cli.speculator import Speculator
from aurora_protocol.draft_records import Channel, ChannelReason, FileRef, Registration
from aurora_protocol.evidence_records import AnswerEquality, Arm, Environment, Evidence, Sample, Verdict, VerdictKind
from aurora_protocol.gate.throughput_ratios import paired_ratio
from aurora_protocol.training_records import ShardManifest
from aurora_store import Keys, ObjectStore

START: Final = datetime(2026, 11, 16, 8, 0, tzinfo=UTC)
END: Final = START + timedelta(days=7)
CONCURRENCIES: Final = (1, 4, 16)
_OFF: Final = {1: 61.0, 4: 201.0, 16: 540.0}
_NGRAM: Final = {1: 0.94, 4: 0.90, 16: 0.82}
_REJECTED: Final = frozenset({3, 8})
_ROLLED_BACK: Final = 6
UNDECIDED: Final = 7
"""The version whose first measurement did not decide."""
VERSIONS: Final = 11
_TOKENS_EACH: Final = 410_000
HOURS_EACH: Final = 14


def _digest(version: int) -> str:
    return f"{version:064x}"


def _registered(version: int) -> datetime:
    return START + timedelta(hours=HOURS_EACH * version, minutes=13 * version % 50)


def _held_out(version: int) -> float:
    return round(1.42 + 1.35 * (1 - math.exp(-version / 3.6)) + 0.04 * version - (0.22 if version == 8 else 0.0), 2)


def _speedup(version: int, concurrency: int) -> float:
    worth = {1: 0.70, 4: 0.58, 16: 0.47}[concurrency]
    return 0.55 + worth * (_held_out(version) - 0.72)


def registrations() -> Iterator[Registration]:
    for version in range(VERSIONS):
        yield Registration(
            version=version,
            lineage=1,
            checkpoint=Keys.checkpoint(version, _digest(version)),
            digest=_digest(version),
            held_out_acceptance_length=_held_out(version),
            trained_tokens=version * _TOKENS_EACH,
            created=_registered(version),
        )


def channel() -> Iterator[Channel]:
    active, epoch, rejected = 0, 1, tuple[int, ...]()
    yield _epoch(epoch, 0, ChannelReason.INITIAL, START, rejected, "the initial draft")
    for version in range(1, VERSIONS):
        if version in _REJECTED:
            continue
        epoch, before = epoch + 1, active
        active = version
        time = _registered(version) + timedelta(hours=2, minutes=20)
        yield _epoch(epoch, active, ChannelReason.PROMOTED, time, rejected, f"version {version} passed its canary")
        if version == _ROLLED_BACK:
            epoch, active, rejected = epoch + 1, before, (*rejected, version)
            text = "live acceptance length 1.61 is below 2.31 of version 5 in 3 intervals"
            yield _epoch(epoch, active, ChannelReason.ROLLED_BACK, time + timedelta(hours=3), rejected, text)


def _epoch(
    epoch: int, active: int, reason: ChannelReason, time: datetime, rejected: tuple[int, ...], message: str
) -> Channel:
    return Channel(
        epoch=epoch, lineage=1, active=active, reason=reason, rejected=rejected, message=message, created=time
    )


def measurements() -> Iterator[Evidence]:
    active = 0
    for version in range(1, VERSIONS):
        kind = VerdictKind.REJECT if version in _REJECTED else VerdictKind.PASS
        yield _measured(version, active, kind, attempt=2 if version == UNDECIDED else 1)
        if kind is VerdictKind.PASS and version != _ROLLED_BACK:
            active = version


@cache
def _measured(version: int, active: int, kind: VerdictKind, *, attempt: int) -> Evidence:
    noise = random.Random(-version if kind is VerdictKind.INCONCLUSIVE else version)  # noqa: S311 - an example's figures

    def batch(arm: Arm, number: int, concurrency: int) -> Sample:
        factor = {
            Arm.OFF: 1.0,
            Arm.NGRAM: _NGRAM[concurrency],
            Arm.ACTIVE: _speedup(active, concurrency),
            Arm.CANDIDATE: _speedup(version, concurrency) * (0.86 if kind is VerdictKind.REJECT else 1.0),
        }[arm]
        spread = 0.05 if arm in (Arm.OFF, Arm.NGRAM) else 0.006
        seconds = 12.0 / (factor * math.exp(noise.gauss(0, spread)))
        tokens = round(_OFF[concurrency] * 12)
        return Sample(arm=arm, concurrency=concurrency, round=number, requests=8, tokens=tokens, seconds=seconds)

    samples = tuple(batch(arm, number, one) for number in range(6) for one in CONCURRENCIES for arm in Arm)
    pairs = ((Arm.CANDIDATE, Arm.OFF), (Arm.CANDIDATE, Arm.ACTIVE), (Arm.ACTIVE, Arm.OFF), (Arm.NGRAM, Arm.OFF))
    found = [paired_ratio(samples, *pair, concurrency) for concurrency in CONCURRENCIES for pair in pairs]
    ratios = tuple(ratio for ratio in found if ratio is not None)
    first = next(one for one in ratios if one.denominator is Arm.ACTIVE)
    figures = f"{first.estimate:.3f}x [{first.low:.3f}, {first.high:.3f}]"
    started = _registered(version) + timedelta(minutes=25 + 56 * (attempt - 1))
    bar = ">= 1.020" if kind is VerdictKind.PASS else "does not reach 1.020"
    return Evidence(
        version=version,
        attempt=attempt,
        lineage=1,
        candidate_digest=_digest(version),
        active_version=active,
        active_digest=_digest(active),
        samples=samples,
        equality=(AnswerEquality(arm=Arm.CANDIDATE, prompts=24, identical=23, near_ties=1, different=0),),
        acceptance_length={Arm.CANDIDATE: _held_out(version), Arm.ACTIVE: _held_out(active)},
        environment=Environment(
            hardware="invented",
            device="cuda",
            engine="0.5.23",
            torch="2",
            dtype="bfloat16",
            draft_steps=4,
            draft_tokens=5,
        ),
        prompts_sha256=_digest(99),
        verdict=Verdict(kind=kind, reasons=(f"candidate/active at concurrency 1 {figures} {bar}",), ratios=ratios),
        started=started,
        finished=started + timedelta(minutes=46 + 7 * version % 20),
    )


def shards() -> Iterator[ShardManifest]:
    """A shard an hour. Nobody asks anything for ten hours, and an older version wrote the first shards."""
    noise = random.Random(7)  # noqa: S311 - figures of an example
    changes = [(one.created, one.active) for one in channel()]
    for number in (*range(80), *range(90, 160)):
        time = START + timedelta(hours=number * 168 / 160 + 0.3)
        version = next(active for since, active in reversed(changes) if since <= time)
        length = _held_out(version) - 0.18 - (0.35 if 96 <= number < 118 else 0.0) + noise.gauss(0, 0.06)
        rounds, requests = 6000 + noise.randrange(1200), 70
        answers = round(max(1.05, length) * rounds)
        lookup = round(0.06 * answers)
        accepted = max(0, answers - rounds - requests - lookup)
        yield ShardManifest(
            lineage=1,
            pod="chat-a",
            boot="b1",
            seq=number,
            file=FileRef(name="s.safetensors", sha256=_digest(1), size=1),
            requests=requests,
            tokens=answers * 3,
            answer_tokens=answers,
            rounds=rounds,
            proposed=round(rounds * (1.9 + 0.16 * version + noise.gauss(0, 0.08))),
            accepted=accepted,
            dropped_records=0,
            draft_versions=(version,),
            created=time,
        )


def records() -> Records:
    """All of it."""
    return Records(tuple(registrations()), tuple(measurements()), tuple(channel()), tuple(shards()))


def history() -> Iterator[HistoryEntry]:
    """The last 20 decisions: those of the channel after its first record, the rejections, and a pause."""
    found = [(one.created, one.reason.value, one.active, one.message) for one in list(channel())[1:]]
    found += [
        (_registered(version) + timedelta(minutes=80), "Rejected", version, "candidate/active does not reach 1.020")
        for version in _REJECTED
    ]
    found.append((START + timedelta(days=4), "Paused", _ROLLED_BACK, "by a person"))
    for time, event, version, message in sorted(found)[-20:]:
        version = _ROLLED_BACK if event == "RolledBack" else version
        yield HistoryEntry(time=time, event=event, version=version, message=message)


def status() -> SpeculatorStatus:
    last = list(measurements())[-1].verdict.ratios
    speedup, gain = (
        next(f"{one.estimate:.2f}x ({one.low:.2f}-{one.high:.2f})" for one in last if one.denominator is arm)
        for arm in (Arm.OFF, Arm.ACTIVE)
    )
    return SpeculatorStatus(
        conditions=[
            Condition(
                type=ConditionType.READY,
                status=ConditionStatus.TRUE,
                reason="Serving",
                message="",
                last_transition_time=START,
                observed_generation=1,
            )
        ],
        lineage=1,
        active=VersionStatus(
            version=VERSIONS - 1,
            speedup=speedup,
            gain=gain,
            speedup_source="invented hardware, bfloat16, concurrency 1",
        ),
        training=TrainingStatus(
            phase="Training",
            step=9_420,
            trained_tokens=VERSIONS * _TOKENS_EACH - 30_000,
            steps_per_minute="1.0",
            pending_shards=2,
            held_out_accept_length="3.12",
            vocabulary_coverage="0.964",
            devices="1 nvidia.com/gpu",
            saved_devices="2.4 nvidia.com/gpu",
        ),
        accept_length="2.91",
        estimated_speedup="~1.9x",
        updated="3/3",
        history=list(history()),
    )


def example() -> Speculator:
    """The speculator as the API server returns it."""
    written = status().model_dump(mode="json", by_alias=True, exclude_none=True)
    return Speculator.of(
        {
            "metadata": {"name": "chat", "namespace": "team", "uid": "0123456789abcdef", "generation": 1},
            "spec": {"target": {"model": "an invented 8B model"}},
            "status": written,
        }
    )


def put(objects: ObjectStore, found: Records) -> None:
    """Store the records under their keys."""
    for registration in found.registrations:
        objects.put(Keys.registration(registration.version), registration.to_json())
    for one in found.evidence:
        objects.put(Keys.evidence(one.version, one.attempt), one.to_json())
    for epoch in found.channel:
        objects.put(Keys.channel(epoch.epoch), epoch.to_json())
    for shard in found.shards:
        key = Keys.shard(shard.lineage, shard.pod, shard.boot, shard.seq, shard.created)
        objects.put(f"{key}.json", shard.to_json())

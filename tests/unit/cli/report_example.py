"""An invented speculator with a week of records, for the tests and the picture of the report.

The figures are made up: a draft that learns, two versions that are rejected and one that is rolled back, and traffic
that turns to another domain on the fifth day.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from aurora_api.v1alpha1.conditions import Condition, ConditionStatus, ConditionType
from aurora_api.v1alpha1.status import HistoryEntry, SpeculatorStatus, TrainingStatus, VersionStatus
from aurora_cli.report.records import Records
from aurora_cli.speculator import Speculator
from aurora_protocol.draft_records import Channel, ChannelReason, FileRef, Registration
from aurora_protocol.evidence_records import Arm, Evidence, RatioEstimate, Verdict, VerdictKind
from aurora_protocol.training_records import ShardManifest
from aurora_store import Keys, ObjectStore
from tests.unit.cli.fake_cluster import resource
from tests.unit.operator import worlds

START: Final = datetime(2026, 11, 16, 8, 0, tzinfo=UTC)
END: Final = START + timedelta(days=7)
WORTH: Final = {1: 0.70, 4: 0.58, 16: 0.47}
"""What an accepted token is worth, by concurrency."""
REJECTED: Final = frozenset({3, 8})
ROLLED_BACK: Final = 6
VERSIONS: Final = range(11)
TOKENS_EACH: Final = 410_000


def _registered(version: int) -> datetime:
    return START + timedelta(hours=14 * version, minutes=13 * version % 50)


def _held_out(version: int) -> float:
    return round(1.42 + 1.35 * (1 - math.exp(-version / 3.6)) + 0.04 * version - (0.22 if version == 8 else 0.0), 2)


def _registration(version: int) -> Registration:
    figures = {"held_out_acceptance_length": _held_out(version), "trained_tokens": version * TOKENS_EACH}
    return worlds.registration(version).model_copy(update={**figures, "created": _registered(version)})


def _channel() -> Iterator[Channel]:
    active = 0
    yield worlds.channel(0).model_copy(update={"created": START})
    for epoch, version in enumerate((one for one in VERSIONS[1:] if one not in REJECTED), 2):
        made, time = worlds.channel(version, epoch), _registered(version) + timedelta(hours=2, minutes=20)
        yield made.model_copy(update={"created": time, "message": "passed its canary"})
        if version == ROLLED_BACK:
            back = {"active": active, "reason": ChannelReason.ROLLED_BACK, "created": time + timedelta(hours=3)}
            yield made.model_copy(update={**back, "epoch": 99, "message": "live acceptance 1.61 is below 2.31"})
        else:
            active = version


def _in_sequence(channel: Iterator[Channel]) -> Iterator[Channel]:
    for epoch, one in enumerate(channel, 1):
        yield one.model_copy(update={"epoch": epoch})


def _evidence(version: int) -> Evidence:
    noise = random.Random(version)  # noqa: S311 - figures of an example
    passed = version not in REJECTED
    started = _registered(version) + timedelta(minutes=25)

    def ratio(over: Arm, concurrency: int) -> RatioEstimate:
        estimate = 1.02 + noise.random() / 9 if passed else 0.97
        if over is Arm.OFF:
            estimate = (0.55 + WORTH[concurrency] * (_held_out(version) - 0.72)) * (1.0 if passed else 0.86)
        half = (0.04 if over is Arm.OFF else 0.01) * (0.5 + noise.random())
        return RatioEstimate(
            numerator=Arm.CANDIDATE,
            denominator=over,
            concurrency=concurrency,
            rounds=6,
            estimate=estimate,
            low=estimate * (1 - half),
            high=estimate * (1 + half),
        )

    ratios = tuple(ratio(over, concurrency) for concurrency in WORTH for over in (Arm.OFF, Arm.ACTIVE))
    kind = VerdictKind.PASS if passed else VerdictKind.REJECT
    reasons = (f"candidate/active at concurrency 1 {'reaches' if passed else 'does not reach'} 1.020",)
    return worlds.evidence(version, kind, active=version - 1).model_copy(
        update={
            "verdict": Verdict(kind=kind, reasons=reasons, ratios=ratios),
            "started": started,
            "finished": started + timedelta(minutes=46 + 7 * version % 20),
        }
    )


def _shards(channel: list[Channel]) -> Iterator[ShardManifest]:
    """A shard an hour. Nobody asks anything for ten hours."""
    noise = random.Random(7)  # noqa: S311 - figures of an example
    for number in (*range(80), *range(90, 160)):
        time = START + timedelta(hours=number * 1.05 + 0.3)
        version = next(one.active for one in reversed(channel) if one.created <= time)
        length = _held_out(version) - 0.18 - (0.35 if 96 <= number < 118 else 0.0) + noise.gauss(0, 0.06)
        yield ShardManifest(
            lineage=1,
            pod="chat-a",
            boot="b1",
            seq=number,
            created=time,
            file=FileRef(name="s.safetensors", sha256=worlds.digest(1), size=1),
            requests=70,
            tokens=30_000,
            answer_tokens=round(6000 * max(1.05, length)),
            rounds=6000,
            proposed=12_000,
            accepted=5000,
            dropped_records=0,
        )


def records() -> Records:
    """All of it."""
    channel = list(_in_sequence(_channel()))
    evidence = [_evidence(version) for version in VERSIONS[1:]]
    return Records([_registration(version) for version in VERSIONS], evidence, channel, list(_shards(channel)))


def status() -> SpeculatorStatus:
    """The status at the end of the week, with all decisions."""
    speedup, gain = (f"{one.estimate:.2f}x ({one.low:.2f}-{one.high:.2f})" for one in _evidence(10).verdict.ratios[:2])
    ready = Condition(
        type=ConditionType.READY, status=ConditionStatus.TRUE, reason="Serving", last_transition_time=START
    )
    rejected = [(_registered(one) + timedelta(minutes=80), "Rejected", one, "does not reach 1.020") for one in REJECTED]
    advanced = [
        (one.created, one.reason.value, one.active if one.epoch != 7 else ROLLED_BACK, one.message)
        for one in list(_in_sequence(_channel()))[1:]
    ]
    decided = sorted([*rejected, *advanced, (START + timedelta(days=4), "Paused", ROLLED_BACK, "by a person")])
    return SpeculatorStatus(
        conditions=[ready],
        active=VersionStatus(version=10, speedup=speedup, gain=gain),
        training=TrainingStatus(
            step=9_420,
            trained_tokens=4_480_000,
            held_out_accept_length="3.12",
            devices="1 nvidia.com/gpu",
            saved_devices="2.4 nvidia.com/gpu",
        ),
        accept_length="2.91",
        history=[HistoryEntry(time=time, event=event, version=of, message=why) for time, event, of, why in decided],
    )


def example() -> Speculator:
    """The speculator as the API server returns it."""
    return Speculator.of(resource(status(), target={"model": "an invented 8B model"}))


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

"""Builds the page of a report from a speculator and its stored records. Calls nothing.

Invariants: no figure is invented. Jinja2 escapes every text, and the page states a content security policy that allows
its own style sheet and its own pictures and nothing else, so a browser loads and runs nothing, whatever a text says.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import resources
from itertools import pairwise
from typing import Any, Final

import numpy as np
from jinja2 import DictLoader, Environment, StrictUndefined

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_cli.report.charts import Picture, Span, VersionSpeed, acceptance, cost, speedups, timeline
from aurora_cli.report.records import Records
from aurora_cli.speculator import Speculator
from aurora_cli.tables.plain_text import count
from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.evidence_records import Arm, Evidence, RatioEstimate, VerdictKind
from aurora_store.errors import bounded_text

MAX_TEXT_CHARACTERS: Final = 600
_FILES: Final = ("page.html.j2", "page.css")
_KINDS: Final = {
    **dict.fromkeys(("Promoted", "Initial"), VerdictKind.PASS),
    **dict.fromkeys(("RolledBack", "Refused", "Rejected"), VerdictKind.REJECT),
}
Decision = tuple[datetime, str, int, str]
"""Time, event, version and reason."""


def render(one: Speculator, records: Records, now: datetime) -> str:
    """The page as HTML."""
    source = {file: (resources.files("aurora_cli.report") / file).read_text(encoding="utf-8") for file in _FILES}
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_bounded, loader=DictLoader(source))
    digest = base64.b64encode(hashlib.sha256(source["page.css"].removesuffix("\n").encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(style_digest=digest, **_content(one, records, now))


def _bounded(value: Any) -> Any:
    """Texts of others on one line, without control characters. Pictures and the style sheet stay as they are."""
    return bounded_text(value, MAX_TEXT_CHARACTERS) if type(value) is str and not value.startswith("data:") else value


def _content(one: Speculator, records: Records, now: datetime) -> dict[str, Any]:
    served = list(_served(records.channel, now))
    decisions = list(_decisions(one, records.channel))
    return {
        "name": one.name,
        "namespace": one.namespace,
        "target": str(one.section("target").get("model", "an unknown target")),
        "made": f"{now:%Y-%m-%d %H:%M} UTC",
        "ready": ready.reason if (ready := one.condition(ConditionType.READY)) else "no operator has written a status",
        "figures": list(_figures(one, records)),
        "sections": list(_sections(one, records, served, decisions)),
        "measurements": [(each, list(_ratios(each))) for each in reversed(records.evidence)],
        "decisions": [(f"{time:%Y-%m-%d %H:%M}", *rest) for time, *rest in reversed(decisions)],
        "left_out": records.left_out,
    }


def _figures(one: Speculator, records: Records) -> Iterator[tuple[str, str, str]]:
    """Name, value and meaning of each figure at the top."""
    status, training, active = one.status, one.status.training, one.status.active
    source = f"version {active.version}, measured" if active else ""
    yield "Speedup over off", (active.speedup if active else None) or "", source
    yield "Gain", (active.gain if active else None) or "", "over the version that was active before"
    yield "Live acceptance", status.accept_length or "", "answer tokens per verify round, last minute with traffic"
    yield "Held-out acceptance", training.held_out_accept_length or "", "of the newest draft, simulated"
    for newest in records.registrations[-1:]:
        yield "Newest version", str(newest.version), f"registered {newest.created:%d %b}"
    yield "Learned", count(training.trained_tokens), f"traced tokens, in {count(training.step)} optimizer steps"
    yield "Held by the trainer", training.devices or "", "devices, busy or not"
    yield "Saved by speculation", training.saved_devices or "", "devices, by the engines' own estimate over a day"


def _sections(
    one: Speculator, records: Records, served: Sequence[Span], decisions: Sequence[Decision]
) -> Iterator[tuple[str, str, Picture | None]]:
    """Question, how to read the picture, and the picture of each section."""
    measured = [Span(each.version, each.started, each.finished, each.verdict.kind) for each in records.evidence]
    yield (
        "How much faster is each version?",
        "Answer tokens per second over those without speculation, measured on one engine with equal prompts, by number"
        " of concurrent requests. Lines are 95 % intervals.",
        speedups(_speeds(records.evidence, {each.version for each in served})),
    )
    times = [(each.created.timestamp(), each.trained_tokens) for each in records.registrations]
    yield (
        "Does the draft learn?",
        "The target's own token counts, so 1 is no help at all. Live traffic is placed at the tokens that training had"
        " learned when a shard was written.",
        acceptance(
            [
                (each.trained_tokens, each.held_out_acceptance_length)
                for each in records.registrations
                if each.held_out_acceptance_length is not None
            ],
            [
                (_learned(times, each.created), each.answer_tokens / each.rounds)
                for each in records.shards
                if each.rounds and times and each.created.timestamp() >= times[0][0]
            ],
        ),
    )
    kinds = [(time, _KINDS.get(event)) for time, event, *_ in decisions]
    yield "What was rolled out, and when?", "Numbers are versions.", timeline(served, measured, kinds)
    yield "What did it cost?", "Measuring holds one engine, or one replica.", cost(measured)


def _learned(times: Sequence[tuple[float, int]], moment: datetime) -> float:
    """The tokens that training had learned at a time, interpolated between registrations."""
    moments, tokens = zip(*sorted(times), strict=True)
    return float(np.interp(moment.timestamp(), moments, tokens))


def _speeds(evidence: Sequence[Evidence], served: set[int]) -> list[VersionSpeed]:
    """By version. The initial draft, which is never measured itself, has the figures of the first active version."""
    found = {each.version: _over_off(each, Arm.CANDIDATE) for each in evidence}
    for each in evidence:
        found.setdefault(each.active_version, _over_off(each, Arm.ACTIVE))
    return [VersionSpeed(version, found[version], version in served) for version in sorted(found) if found[version]]


def _over_off(one: Evidence, arm: Arm) -> list[RatioEstimate]:
    return [each for each in one.verdict.ratios if (each.numerator, each.denominator) == (arm, Arm.OFF)]


def _ratios(one: Evidence) -> Iterator[tuple[int, str, str]]:
    """Concurrency, ratio over no speculation, and ratio over the active version."""
    gains = {each.concurrency: each for each in one.verdict.ratios if each.denominator is Arm.ACTIVE}
    for each in _over_off(one, Arm.CANDIDATE):
        yield each.concurrency, _ratio(each), _ratio(gains.get(each.concurrency))


def _ratio(one: RatioEstimate | None) -> str:
    return f"{one.estimate:.3f}x [{one.low:.3f}, {one.high:.3f}]" if one else "not measured"


def _served(channel: Sequence[Channel], now: datetime) -> Iterator[Span]:
    """Which version was active when, oldest first. Epochs that change no version are one stretch."""
    changes = [(record.active, record.created) for record in channel]
    firsts = [each for number, each in enumerate(changes) if number == 0 or changes[number - 1][0] != each[0]]
    for (version, start), (_, end) in pairwise([*firsts, (-1, now)]):
        yield Span(version, start, max(start, end))


def _decisions(one: Speculator, channel: Sequence[Channel]) -> Iterator[Decision]:
    """All known decisions, oldest first: the channel's until the status' history begins, which keeps the last 20."""
    history = one.status.history
    for before, record in pairwise([None, *channel]):
        if record is not None and not (history and record.created >= history[0].time):
            taken_back = record.reason is ChannelReason.ROLLED_BACK and before is not None
            version = before.active if taken_back and before is not None else record.active
            yield record.created, record.reason.value, version, record.message
    for entry in history:
        yield entry.time, entry.event, entry.version, entry.message

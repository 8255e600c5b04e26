"""The figures of the status: ratios with their interval and source, live acceptance, and the devices of training. Pure.

No decision about a version follows from the live figures.

Invariant: a figure that was not observed is unknown. One ready pod without an estimate makes the saving of devices
unknown, because the others say nothing about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from aurora_operator.children.common_pod import gpus_of
from aurora_operator.children.metadata import ENGINE_CONTAINER, TRAINER
from aurora_operator.observe.observed import Observed
from aurora_protocol.evidence_records import Evidence

_RATIO = re.compile(r"(\d+\.\d\d)x \((\d+\.\d\d)-(\d+\.\d\d)\)")


def ratio_text(evidence: Evidence, numerator: str, denominator: str, concurrency: int) -> str | None:
    """``1.62x (1.55-1.70)``; None when the evidence does not compare the two at this concurrency."""
    for ratio in evidence.verdict.ratios:
        if (ratio.numerator, ratio.denominator, ratio.concurrency) == (numerator, denominator, concurrency):
            return f"{ratio.estimate:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"
    return None


def parse_ratio(text: str) -> tuple[float, float, float] | None:
    """Estimate, low and high bound of what :func:`ratio_text` wrote; None for another text."""
    match = _RATIO.fullmatch(text)
    return (float(match[1]), float(match[2]), float(match[3])) if match else None


def accept_text(answer_tokens: int, verify_rounds: int) -> str | None:
    """Answer tokens per verify round, the bonus token included."""
    return f"{answer_tokens / verify_rounds:.2f}" if verify_rounds > 0 else None


def speedup_text(traffic: Iterable[tuple[int, float]]) -> str | None:
    """``~1.8x`` for pairs of a pod's answer tokens and its estimated speedup; None without tokens.

    Without speculation a pod would have answered tokens / speedup in the same time. So the speedup of all pods is the
    harmonic mean, weighted by tokens. Pods without tokens or with a speedup of 0 do not count.
    """
    counted = [(tokens, speedup) for tokens, speedup in traffic if tokens > 0 and speedup > 0]
    if not counted:
        return None
    answered = sum(tokens for tokens, _ in counted)
    return f"~{answered / sum(tokens / speedup for tokens, speedup in counted):.1f}x"


def live_acceptance(observed: Observed) -> str | None:
    """Acceptance length over all pods, since each pod's oldest recent sample."""
    tokens = rounds = 0
    for pod in observed.pods:
        start = observed.recent_counters.get(pod.name)
        if pod.agent is not None and start is not None and start.boot == pod.agent.boot:
            tokens += pod.agent.live.tokens - start.answer_tokens
            rounds += pod.agent.live.rounds - start.verify_rounds
    return accept_text(tokens, rounds)


def estimated_speedup(observed: Observed) -> str | None:
    """The pods' estimated speedups over no speculation as one, over the recent traffic.

    The last value stays while there is no traffic. Engines with a fixed shape estimate nothing, so it ends with them.
    """
    traffic = []
    for pod in observed.pods:
        start, agent = observed.recent_counters.get(pod.name), pod.agent
        if agent is not None and agent.speedup_estimate is not None and start is not None and start.boot == agent.boot:
            traffic.append((agent.live.tokens - start.answer_tokens, agent.speedup_estimate))
    return speedup_text(traffic) or (observed.status.estimated_speedup if observed.spec.draft.adaptive else None)


MIN_OBSERVED: Final = timedelta(minutes=10)
"""An engine's estimate counts once it covers so much time."""


def held_devices(observed: Observed) -> str | None:
    """The GPUs that the trainer holds, such as ``1 nvidia.com/gpu``. None: training is suspended, or it has none."""
    training = observed.spec.training
    found = {} if training.suspended else gpus_of(observed.spec, training.template, TRAINER)
    return next((f"{count} {kind}" for kind, count in found.items()), None)


def saved_devices(observed: Observed) -> str | None:
    """The GPUs that inference pods would need more without speculation, by the engines' estimate. None: unknown."""
    found = gpus_of(observed.spec, observed.spec.serving.template, ENGINE_CONTAINER)
    serving = [pod for pod in observed.pods if pod.serves]
    shares = []
    for pod in serving:
        saved = pod.agent.saved_time if pod.agent is not None else None
        if saved is None or saved.observed_seconds < MIN_OBSERVED.total_seconds():
            return None
        shares.append(saved.share)
    return next((f"{sum(shares) * count:.2f} {kind}" for kind, count in found.items() if shares), None)

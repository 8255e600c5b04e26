"""Formats numbers for people: ratios with their interval and source, and acceptance lengths. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

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


def source_text(evidence: Evidence, concurrency: int) -> str:
    """Device, hardware, data type and concurrency of a ratio, so that a reader knows a figure from a CPU.

    The arm without speculation ("off") may have been measured on an earlier day. The text then names that day.
    """
    environment = evidence.environment
    earlier_day = f", off of {evidence.baseline.created:%Y-%m-%d}" if evidence.baseline else ""
    return f"{environment.device}: {environment.hardware}, {environment.dtype}, concurrency {concurrency}{earlier_day}"


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

"""Numbers as people read them: ratios with their interval and their source. Pure."""

from __future__ import annotations

from aurora_protocol.evidence_records import Evidence


def ratio_text(evidence: Evidence, numerator: str, denominator: str, concurrency: int) -> str | None:
    """``1.62x (1.55-1.70)``; None when the evidence does not compare the two at this concurrency."""
    for ratio in evidence.verdict.ratios:
        if (ratio.numerator, ratio.denominator, ratio.concurrency) == (numerator, denominator, concurrency):
            return f"{ratio.estimate:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"
    return None


def source_text(evidence: Evidence, concurrency: int) -> str:
    """Where a ratio was measured: a figure from a CPU must say so."""
    environment = evidence.environment
    apart = f", off of {evidence.baseline.created:%Y-%m-%d}" if evidence.baseline else ""
    return f"{environment.device}: {environment.hardware}, {environment.dtype}, concurrency {concurrency}{apart}"


def accept_text(answer_tokens: int, verify_rounds: int) -> str | None:
    """Answer tokens per verify round, the bonus token included."""
    return f"{answer_tokens / verify_rounds:.2f}" if verify_rounds > 0 else None

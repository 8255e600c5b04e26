"""The gate: from raw samples to a verdict.

Why in the protocol: the validator computes the verdict, and an auditor computes the same verdict from the evidence.

Invariants: pure and deterministic. A candidate passes only when the lower bound of the interval clears every bar
(promise 1, "Earned").

- :mod:`~aurora_protocol.gate.throughput_ratios`: ratios of the throughput of two arms, with intervals.
- :mod:`~aurora_protocol.gate.verdict`: the bars, the verdict, and that of stored evidence, which is not believed.
"""

from aurora_protocol.gate.throughput_ratios import paired_ratio
from aurora_protocol.gate.verdict import GatePolicy, judge

__all__ = ["GatePolicy", "judge", "paired_ratio"]

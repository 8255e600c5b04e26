"""How the demo's speculator differs from the rig's, so that a reader should wait less for the same result.

The two were not compared on one machine.

Invariant: the gate, the live analysis, and how much the trainer learns before it offers a candidate are the rig's own.
A demo that ends sooner proves no less.
"""

from __future__ import annotations

from typing import Any, Final

from tests.rig.small_speculator import CpuShares

CPU: Final = CpuShares(serving=225, training=200)
"""The trainer gets at least 23 % of the CPU while both pods serve, instead of 6 %. The first candidate needs about 40 s
of CPU time (four passes over 10,000 positions, docs/results/costs.md). With 6 %, the trainer falls behind the traffic,
and the demo waits for it."""
SPEC: Final[dict[str, Any]] = {"serving": {"device": "cpu"}}
"""Without a device, each inference pod and the validator import torch to look for GPUs before an engine starts."""

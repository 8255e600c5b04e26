"""How long does it take until another replica of the operator acts after the leader failed, and does only one act?

Two operator processes compete for a Lease of a real API server. In each round the leader is killed (SIGKILL), cut off
from the API server by a proxy, or frozen (SIGSTOP). Then the speculator's spec changes, and the round ends when the
Deployment shows the change. A cut or frozen replica comes back before the next round. There are no pods and no store.

Prints the seconds from the fault to the change in the Deployment, and from the audit log of the API server how many
writes came from a replica after another replica had taken the Lease. Exits with 1 when there was such a write.

Takes about 15 seconds a round.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.bench.bench_command import add_lock_option, bench_parser, commit, exit_on_sigterm, hold_lock, machine
from tests.bench.markdown import markdown_table, median_and_quartiles
from tests.rig.api_server import api_server
from tests.rig.operator_replicas import OperatorReplica, OperatorRig, audit_flags, audited_acts, seconds_until

FAULTS = ("kill", "cut", "freeze")
START_SECONDS = 120
ROUND_SECONDS = 120


def cause(fault: str, leader: OperatorReplica) -> None:
    """Let ``leader`` fail."""
    if fault == "kill":
        leader.end(signal.SIGKILL)
    elif fault == "cut":
        leader.proxy.cut()
    else:
        leader.send(signal.SIGSTOP)


def repair(fault: str, failed: OperatorReplica) -> None:
    """Bring ``failed`` back, and wait until it is a standby."""
    if fault == "kill":
        failed.start_as_standby(START_SECONDS)
    elif fault == "cut":
        failed.proxy.mend()
    else:
        failed.send(signal.SIGCONT)
    seconds_until(lambda: not failed.leads(), START_SECONDS, "a replica that gave up")


def measure(rig: OperatorRig, faults: list[str], lease_seconds: int) -> dict[str, list[float]]:
    """Seconds from each fault to the change in the Deployment."""
    seconds: dict[str, list[float]] = {fault: [] for fault in faults}
    settings = {"AURORA_LEASE_SECONDS": str(lease_seconds)}
    with rig.replica("replica-a", **settings) as first, rig.replica("replica-b", **settings) as second:
        first.start()
        seconds_until(first.leads, START_SECONDS, "a leader")
        second.start_as_standby(START_SECONDS)
        for number, fault in enumerate(faults):
            leader, standby = (first, second) if first.leads() else (second, first)
            wanted = 1 + (number + 1) % 100
            failed_at = time.monotonic()
            cause(fault, leader)
            rig.scale(wanted)
            seconds_until(partial(rig.scaled_to, wanted), ROUND_SECONDS, f"a Deployment with {wanted} replicas")
            seconds[fault].append(time.monotonic() - failed_at)
            print(f"{number + 1}/{len(faults)} {fault}: {seconds[fault][-1]:.1f} s", file=sys.stderr, flush=True)
            assert standby.leads(), "the standby made the change"
            repair(fault, leader)
    return seconds


def main() -> int:
    parser = bench_parser("tests.bench.operator.failover", __doc__)
    parser.add_argument("--kills", type=int, default=20, help="rounds in which the leader is killed")
    parser.add_argument("--cuts", type=int, default=5, help="rounds in which the leader's network is cut")
    parser.add_argument("--freezes", type=int, default=5, help="rounds in which the leader is frozen")
    parser.add_argument("--lease-seconds", type=int, default=10, help="duration of the Lease")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of all rounds to this file")
    add_lock_option(parser)
    options = parser.parse_args()
    exit_on_sigterm()
    faults = ["kill"] * options.kills + ["cut"] * options.cuts + ["freeze"] * options.freezes
    with hold_lock(options.lock), tempfile.TemporaryDirectory(prefix="aurora-failover-") as name:
        folder = Path(name)
        with api_server(flags=audit_flags(folder)) as server:
            rig = OperatorRig(server, folder)
            rig.prepare()
            rig.create_speculator()
            seconds = measure(rig, faults, options.lease_seconds)
        written = audited_acts(folder / "audit.log")
    measured = {fault: values for fault, values in seconds.items() if len(values) > 1}
    rows = [
        (fault, len(values), median_and_quartiles(values), f"{max(values):.1f}") for fault, values in measured.items()
    ]
    print(markdown_table(("fault", "rounds", "seconds, median [quartiles]", "maximum"), rows))
    print(f"\n{written.acts} writes, {written.takeovers} takeovers, {len(written.violations)} writes by two replicas")
    print(*written.violations, sep="\n")
    if options.json is not None:
        provenance = {"commit": commit(), "machine": machine(), "lease_seconds": options.lease_seconds}
        counts = {"writes": written.acts, "takeovers": written.takeovers, "double": len(written.violations)}
        options.json.write_text(json.dumps({**provenance, **counts, "seconds": seconds}, indent=1) + "\n")
    return int(bool(written.violations))


if __name__ == "__main__":
    sys.exit(main())

"""How much does an operator with many speculators cost at rest, and how fast is it?

The operator is the real one, in a process of its own. API server, etcd, the controllers that make pods, and the S3
server are real. Stand-ins take the place of agents, of scheduler and kubelet, and of trainers: there are no nodes, no
containers and no engines. Every speculator is at rest: trained, without traffic, with nothing to do.

Each size gets a fresh API server and store. Measured in turn: requests, CPU and memory at rest; seconds from a change
of a spec to the Deployment, and from a pod's readiness to the status; seconds until everything is reconciled and
applied after kill -9.

Prints a Markdown table.

Takes about 12 minutes for each size up to 100, and 20 minutes for 1,000. Needs the build of
Kubernetes (python -m tests.cluster build), and no cluster.
"""

from __future__ import annotations

import argparse
import resource
import statistics
from pathlib import Path
from typing import Any

from tests.bench.bench_command import add_lock_option, bench_parser, exit_on_sigterm, hold_lock
from tests.bench.markdown import markdown_table
from tests.bench.operator.run import RunOptions, run

QUESTION = "How much does an operator with many speculators cost at rest, and how fast is it?"
DEFAULTS = RunOptions()


def main() -> None:
    arguments = _arguments()
    exit_on_sigterm()
    _raise_file_limit()
    options = RunOptions(
        replicas=arguments.replicas,
        rest_seconds=arguments.rest_seconds,
        settle_seconds=arguments.settle_seconds,
        samples=arguments.samples,
        restarts=arguments.restarts,
        checkout=arguments.operator.resolve(),
        keep_log=arguments.operator_log,
    )
    for count in arguments.sizes:
        with hold_lock(arguments.lock):
            row = run(count, options)
        print(table([row]), flush=True)


def _arguments() -> argparse.Namespace:
    parser = bench_parser("tests.bench.operator", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 100, 1000], help="numbers of speculators")
    parser.add_argument("--replicas", type=int, default=DEFAULTS.replicas, help="inference pods of each speculator")
    parser.add_argument(
        "--rest-seconds", type=float, default=DEFAULTS.rest_seconds, help="length of the window at rest"
    )
    parser.add_argument(
        "--settle-seconds", type=float, default=DEFAULTS.settle_seconds, help="wait before the window at rest"
    )
    parser.add_argument("--samples", type=int, default=DEFAULTS.samples, help="changes of each kind")
    parser.add_argument("--restarts", type=int, default=DEFAULTS.restarts, help="kills of the operator")
    parser.add_argument(
        "--operator", type=Path, default=DEFAULTS.checkout, help="checkout with a .venv whose operator is measured"
    )
    parser.add_argument("--operator-log", type=Path, metavar="FILE", help="append the operator's log to this file")
    add_lock_option(parser)
    return parser.parse_args()


def _raise_file_limit() -> None:
    """Every agent's connection needs a file. The operator inherits the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def memory_slope_kilobytes(rows: list[dict[str, Any]]) -> float | None:
    """Resident kilobytes (1,000 bytes) at rest for each further speculator: the slope of a line through all sizes."""
    if len(rows) < 2:
        return None
    counts = [row["speculators"] for row in rows]
    kilobytes = [row["at_rest"]["memory_mebibytes"]["now"] * 2**20 / 1000 for row in rows]
    return round(statistics.linear_regression(counts, kilobytes).slope, 1)


def table(rows: list[dict[str, Any]]) -> str:
    """The headline figures."""
    head = (
        *("Speculators", "Pods", "API reads/min", "API writes/min", "Store calls/min", "Agent calls/min"),
        *(
            "CPU s/min",
            "RSS MiB",
            "Applied p50",
            "Applied p99",
            "Status p50",
            "Status p99",
            "Reconciled s",
            "Outage applied s",
            "Restart CPU s",
            "From nothing s",
        ),
    )
    return markdown_table(head, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    rest, applied = row["at_rest"], row["change_to_applied_seconds"]
    status = row["readiness_to_status_seconds"]["ready"]
    return (
        *(row["speculators"], row["pods"], rest["api_reads_per_minute"], rest["api_writes_per_minute"]),
        *(rest["store_calls_per_minute"], rest["agent_calls_per_minute"], rest["cpu_seconds_per_minute"]),
        *(rest["memory_mebibytes"]["now"], applied["p50"], applied["p99"], status["p50"], status["p99"]),
        *(_longest(row, "reconciled_seconds"), _longest(row, "applied_seconds"), _longest(row, "cpu_seconds")),
        row["start_to_ready_seconds"],
    )


def _longest(row: dict[str, Any], figure: str) -> object:
    """The highest ``figure`` of all restarts after kill -9; empty without one.

    A user waits for ``applied_seconds``, until every spec that changed while no leader ran is applied.
    """
    return max((each[figure] for each in row["restarts"]), default="")


if __name__ == "__main__":
    main()

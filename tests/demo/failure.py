"""Keeps what a failed demo leaves in its cluster, which is removed afterwards: resources, events and logs of pods."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.cluster.command import CommandError

MAX_LOG_LINES = 200
KUBECTL_SECONDS = 10.0
"""For each question. A cluster that hangs must not hold up its own removal for minutes."""

Kubectl = Callable[..., str]


def save_cluster_logs(kubectl: Kubectl, file: Path) -> None:
    """Write resources, events and the end of each container's log to ``file``.

    Args:
        kubectl: Runs kubectl with the arguments and returns its stdout. Raises CommandError or TimeoutExpired.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    questions = [
        ("get", "pods", "-A", "-o", "wide"),
        ("describe", "auroraspeculators.aurora.dev", "-A"),
        ("get", "events", "-A", "--sort-by=.lastTimestamp"),
    ]
    names = '{range .items[*]}{.metadata.namespace}{" "}{.metadata.name}{"\\n"}{end}'
    pods = [line.split() for line in _answer(kubectl, "get", "pods", "-A", "-o", f"jsonpath={names}").splitlines()]
    questions += [
        ("logs", "-n", pod[0], pod[1], "--all-containers", "--prefix", f"--tail={MAX_LOG_LINES}")
        for pod in pods
        if len(pod) == 2
    ]
    file.write_text("\n".join(f"$ kubectl {' '.join(one)}\n{_answer(kubectl, *one)}\n" for one in questions))


def _answer(kubectl: Kubectl, *arguments: str) -> str:
    """The command's stdout, or its error: a cluster that failed may not answer."""
    try:
        return kubectl(*arguments, timeout_seconds=KUBECTL_SECONDS)
    except (CommandError, OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"

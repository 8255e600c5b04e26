"""What the demo says when it fails: the stage, what happened, the log to read, and what to do.

A failed demo removes its cluster. The logs of the cluster's pods are therefore written to a file first.
"""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.cluster.command import CommandError
from tests.demo.jobs import JobFailedError
from tests.demo.lines import plain_text
from tests.demo.stages import ROOT, stage

EXPECTED_ERRORS = (RuntimeError, OSError, ValueError, LookupError, AssertionError, subprocess.SubprocessError)
"""Failures of a part of the demo, not of the demo's own code. They end the demo without a traceback."""
MAX_REASONS = 3
MAX_LINES_OF_A_REASON = 4
MAX_REASON_CHARACTERS = 1000
TEXT_WIDTH = 100
MAX_LOG_LINES = 200
KUBECTL_SECONDS = 10.0
"""For each question. A cluster that hangs must not hold up its own removal for minutes."""

Kubectl = Callable[..., str]


def failure_lines(key: str, error: BaseException) -> list[str]:
    """What to print after a failure in the stage `key`."""
    failed = stage(key)
    lines = [f"failed: {failed.title}", *_block("what happened", _reasons(error))]
    log = failed.log
    if isinstance(error, JobFailedError) and error.failed.log.is_relative_to(ROOT):
        log = str(error.failed.log.relative_to(ROOT))
    return [*lines, f"  log: {log}", *_block("do this", [failed.advice])]


def interruption_lines(keys: Sequence[str]) -> list[str]:
    """What to print after Ctrl-C, SIGTERM or SIGHUP."""
    titles = ", ".join(stage(key).title for key in keys) or "between two stages"
    return [f"stopped in: {titles}", "run `make demo` again: finished builds and downloads are kept"]


def _reasons(error: BaseException) -> list[str]:
    """The end of the failed program's output, else the error's own text, with the type where the text is a key."""
    if isinstance(error, JobFailedError):
        return [f"exit status {error.failed.exit_status}", *error.failed.log_tail(MAX_REASONS)]
    text = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error)
    written = [line for line in text.splitlines() if line.strip()]
    if len(written) > MAX_REASONS:
        written = [written[0], *written[-MAX_REASONS + 1 :]]
    return written or [type(error).__name__]


def _block(label: str, texts: Sequence[str]) -> list[str]:
    """The texts below each other behind a label. A long text takes several lines."""
    lines = [line for text in texts for line in _wrapped(text)]
    indent = " " * (len(label) + 4)
    return [f"  {label}: {lines[0]}", *(f"{indent}{line}" for line in lines[1:])]


def _wrapped(text: str) -> list[str]:
    printable = plain_text(text, MAX_REASON_CHARACTERS)
    return textwrap.wrap(printable, TEXT_WIDTH, max_lines=MAX_LINES_OF_A_REASON, placeholder=" …") or ["-"]


def save_cluster_logs(kubectl: Kubectl, file: Path) -> None:
    """Write what a failure leaves in the cluster to `file`: resources, events, and the end of each pod's log.

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
    sections = [f"$ kubectl {' '.join(question)}\n{_answer(kubectl, *question)}\n" for question in questions]
    file.write_text("\n".join(sections))


def _answer(kubectl: Kubectl, *arguments: str) -> str:
    """The command's stdout, or its error: a cluster that failed may not answer."""
    try:
        return kubectl(*arguments, timeout_seconds=KUBECTL_SECONDS)
    except (CommandError, OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"

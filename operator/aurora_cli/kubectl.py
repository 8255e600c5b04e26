"""Runs kubectl against the cluster of a command.

Why kubectl: it brings the protocols of exec and the user's authentication, and whoever uses a plugin has it.

Invariants: arguments are passed as a list, so no shell reads them. Every run has a time limit.
"""

from __future__ import annotations

import shutil
import subprocess

from aurora_cli.cluster import Cluster
from aurora_cli.errors import ProgramFailed
from aurora_store.errors import bounded_text


def kubectl(cluster: Cluster, *arguments: str, seconds: float, stdin: str = "") -> str:
    """Run kubectl in the cluster's namespace, and return what it prints. Raises :class:`ProgramFailed`."""
    program = shutil.which("kubectl")
    if program is None:
        raise ProgramFailed("kubectl is not on PATH, and this command needs it")
    command = (program, *cluster.kubectl_flags, f"--namespace={cluster.namespace}", *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"kubectl {arguments[0]} did not end within {seconds:g} s") from None
    if done.returncode:
        raise ProgramFailed(_last_line(done.stderr) or f"kubectl {arguments[0]} failed")
    return done.stdout


def _last_line(errors: str) -> str:
    """The last line that kubectl or the program wrote, without kubectl's own note about the exit code."""
    lines = [line for line in errors.splitlines() if line.strip() and "terminated with exit code" not in line]
    return bounded_text(lines[-1].strip().removeprefix("error: "), 800) if lines else ""

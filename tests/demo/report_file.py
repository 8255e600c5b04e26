"""The report that the demo leaves: `kubectl aurora report` writes a speculator's decisions and figures to a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.access import Tools
from tests.cluster.command import environment_without_proxies

REPORT_SECONDS = 120.0
CLI = (sys.executable, "-m", "aurora_cli")


def write_report(
    name: str, namespace: str, file: Path, tools: Tools, store_endpoint: str, cli: Sequence[str] = CLI
) -> str:
    """Write the report of a speculator to `file`, and return one line that says where it is, or why there is none.

    A demo without a report is still a demo, so no failure of the command ends the demo.

    Args:
        tools: How programs reach the demo's cluster: the variable KUBECONFIG, and the context to name, if any.
        store_endpoint: URL at which this machine reaches the embedded store. The speculator's own URL is a name that
            only the cluster resolves.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    context = ["--context", tools.context] if tools.context else []
    store = ["--endpoint", store_endpoint, "--use-secret"]
    command = [*cli, "report", name, "--namespace", namespace, *context, *store, "-o", str(file)]
    try:
        completed = subprocess.run(
            command,
            env=environment_without_proxies(tools.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=REPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no report: the command took longer than {REPORT_SECONDS:.0f} s"
    if completed.returncode == 0 and file.exists():
        return f"report: {file}"
    written = [line for line in (completed.stderr or completed.stdout).splitlines() if line.strip()]
    return f"no report: exit status {completed.returncode}{f': {written[-1].strip()}' if written else ''}"

"""Helpers that run commands and wait for conditions, with errors that explain a failure without further digging."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 0.1


class CommandError(RuntimeError):
    """A command failed. The message holds the command and the end of its output; `stderr` holds all of stderr."""

    def __init__(self, arguments: Sequence[str], returncode: int, stdout: str, stderr: str) -> None:
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        tail = (stderr.strip() or stdout.strip())[-3000:]
        super().__init__(f"{shlex.join(arguments)} exited {returncode}: {tail}")


class NotReadyError(RuntimeError):
    """Something did not become ready in time."""


def environment_without_proxies(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment and `extra`, without proxy variables.

    Everything that a cluster talks to is on this machine, where a proxy would only get in the way.
    """
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, **(extra or {})}


_dropped_proxies: dict[str, str] = {}
"""The proxy variables that this process began with, for its downloads."""


def drop_proxies() -> None:
    """Take the proxy variables out of this process's environment. Commands that download still get them."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        _dropped_proxies[name] = os.environ.pop(name)


def run(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    downloads: bool = False,
    input: str | None = None,  # noqa: A002  (the name that subprocess uses)
    timeout_seconds: float = 120,
    cwd: Path | None = None,
) -> str:
    """Run a command to its end and return its stdout.

    Args:
        downloads: The command needs other machines, so that it keeps the proxy variables.

    Raises:
        CommandError: The exit status is not 0.
    """
    texts = [str(argument) for argument in arguments]
    completed = subprocess.run(
        texts,
        env={**os.environ, **_dropped_proxies, **(env or {})} if downloads else environment_without_proxies(env),
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        cwd=cwd,
        check=False,
        input=input or "",
    )
    if completed.returncode:
        raise CommandError(texts, completed.returncode, completed.stdout, completed.stderr)
    return completed.stdout


def run_or_none(
    *arguments: str | Path, env: Mapping[str, str] | None = None, timeout_seconds: float = 60
) -> str | None:
    """The command's stdout, or None when the command fails, is missing or times out."""
    try:
        return run(*arguments, env=env, timeout_seconds=timeout_seconds)
    except (CommandError, subprocess.TimeoutExpired, FileNotFoundError):
        return None


def url_answers(url: str) -> bool:
    """Whether a URL on this machine answers with success. The request never goes through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2):
            return True
    except OSError:
        return False


def wait_until(
    description: str,
    condition: Callable[[], bool],
    timeout_seconds: float,
    diagnostics: Callable[[], str] | None = None,
) -> None:
    """Poll until `condition` holds.

    A pause between two polls leaves the CPU to the processes that are still starting.

    Args:
        description: Names the awaited thing in the error.
        diagnostics: Called on a timeout. Its text is appended to the error.

    Raises:
        NotReadyError: The condition did not hold within `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            details = diagnostics() if diagnostics else ""
            raise NotReadyError(f"{description}: not ready after {timeout_seconds:.0f} s{details}")
        time.sleep(POLL_SECONDS)


def print_progress(message: str) -> None:
    """Print to stderr, so that stdout holds only the command's result."""
    print(message, file=sys.stderr, flush=True)


def stop_process(process: subprocess.Popen[bytes], timeout_seconds: float) -> None:
    """Terminate a process and wait for its end. Kill it when it does not end within `timeout_seconds`."""
    process.terminate()
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

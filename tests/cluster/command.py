"""Running a command so that a failure says everything needed to understand it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class CommandError(RuntimeError):
    """A command failed. The message holds the command and the end of what it printed; `stderr` holds all of it."""

    def __init__(self, arguments: Sequence[str], returncode: int, stdout: str, stderr: str) -> None:
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        tail = (stderr.strip() or stdout.strip())[-3000:]
        super().__init__(f"{shlex.join(arguments)} exited {returncode}: {tail}")


class NotReadyError(RuntimeError):
    """Something did not become ready in time."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment less its proxies: everything that a cluster talks to is on this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, **(extra or {})}


def run(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    input: str | None = None,  # noqa: A002  (subprocess calls it so)
    timeout: float = 120,
    cwd: Path | None = None,
) -> str:
    """Run to the end and return stdout; raise CommandError on another exit status than 0."""
    texts = [str(argument) for argument in arguments]
    done = subprocess.run(
        texts,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        check=False,
        input=input or "",
    )
    if done.returncode:
        raise CommandError(texts, done.returncode, done.stdout, done.stderr)
    return done.stdout


def attempt(*arguments: str | Path, env: Mapping[str, str] | None = None, timeout: float = 60) -> str | None:
    """stdout, or None when the command failed: for questions whose answer may be no."""
    try:
        return run(*arguments, env=env, timeout=timeout)
    except (CommandError, subprocess.TimeoutExpired, FileNotFoundError):
        return None


def answers(url: str) -> bool:
    """Whether a URL on this machine answers with success. No proxy, whatever the environment says."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2):
            return True
    except OSError:
        return False


def wait_until(what: str, ready: Callable[[], bool], timeout: float, hint: Callable[[], str] | None = None) -> None:
    """Poll until `ready`, gently: the machine is busy starting the very thing that is waited for."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise NotReadyError(f"{what}: not ready after {timeout:.0f} s{hint() if hint else ''}")
        time.sleep(0.1)


def say(message: str) -> None:
    """Progress goes to stderr, so that stdout stays what was asked for."""
    print(message, file=sys.stderr, flush=True)

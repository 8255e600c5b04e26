"""Runs a program in a terminal of its own, and keeps what the program writes with its times.

Only the standard library is imported, so that a demo on a bare machine can be recorded too. Invariant: signals that
ask this process to end reach the program as from a real terminal, and this process waits for the program's clean-up.
After the program's end these signals are ignored, so that the recording is kept.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tests.demo.stop_signals import STOP_SIGNALS, undisturbed

TERMINAL_NAME = "xterm-256color"
CTRL_C = b"\x03"
POLL_SECONDS = 0.2
READ_BYTES = 65536
LEFT_BEHIND_SECONDS = 2.0
"""How long the output is read after the program's end. A process that the program left behind may write for ever."""
_CHANGES_OUTPUT = ("CI", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""Variables that change what programs write to a terminal."""


@dataclass(frozen=True)
class Chunk:
    """The output of one read of the terminal."""

    seconds: float
    """Since the program started."""
    data: bytes


def terminal_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for a program on a common terminal that a person reads."""
    kept = {name: value for name, value in environment.items() if name not in _CHANGES_OUTPUT}
    return kept | {"TERM": TERMINAL_NAME}


def run_in_terminal(
    command: Sequence[str],
    width: int,
    height: int,
    environment: Mapping[str, str],
    show: Callable[[bytes], object] = lambda data: None,
) -> tuple[int, list[Chunk]]:
    """Run a program to its end. Returns its exit status, 128 + the signal's number after a signal, and its output.

    Args:
        show: Gets each piece of the output as soon as it is read.
    """
    started = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        _become(command, width, height, environment)
    chunks: list[Chunk] = []

    def take() -> bytes | None:
        data = _read(terminal)
        if data:
            chunks.append(Chunk(time.monotonic() - started, data))
            show(data)
        return data

    with _passing_signals_on(pid, terminal):
        while take() is not None and not _has_ended(pid):
            pass
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with undisturbed():
            ended = time.monotonic()
            while time.monotonic() - ended < LEFT_BEHIND_SECONDS and take():
                pass
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return (128 - status if status < 0 else status), chunks


def _read(terminal: int) -> bytes | None:
    """The next output. Empty: none came for a moment. None: no process has the terminal any more."""
    if not select.select([terminal], [], [], POLL_SECONDS)[0]:
        return b""
    try:
        return os.read(terminal, READ_BYTES)
    except OSError:  # how Linux says that no process has the terminal
        return None


def _has_ended(pid: int) -> bool:
    """Whether the program ended. Its status is not fetched yet, so no other process can get the number `pid`."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _become(command: Sequence[str], width: int, height: int, environment: Mapping[str, str]) -> None:
    """Replace this process, the terminal's own, by the program. Never returns."""
    try:
        termios.tcsetwinsize(0, (height, width))
        os.execvpe(command[0], list(command), dict(environment))  # noqa: S606 - a list of words needs no shell
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


@contextmanager
def _passing_signals_on(pid: int, terminal: int) -> Iterator[None]:
    """Pass Ctrl-C and SIGHUP to every process of the terminal, and SIGTERM to the program."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        os.write(terminal, CTRL_C)

    def stop(number: int, frame: FrameType | None) -> None:
        # GNU make passes SIGTERM on to its programs, but not SIGHUP, which a closing terminal sends to all of them.
        send = os.killpg if number == signal.SIGHUP else os.kill
        with contextlib.suppress(ProcessLookupError):
            send(pid, number)

    handlers = dict.fromkeys(STOP_SIGNALS, stop) | {signal.SIGINT: interrupt}
    heard = {number for number in handlers if signal.getsignal(number) is not signal.SIG_IGN}
    before = {number: signal.signal(number, handlers[number]) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

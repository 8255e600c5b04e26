"""A recorded program runs on a common terminal, and gets the signals that a terminal would give it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.demo.recording.terminal import Chunk, run_in_terminal, terminal_environment
from tests.demo.stages import ROOT


def text(chunks: list[Chunk]) -> str:
    return b"".join(chunk.data for chunk in chunks).decode()


def test_the_program_has_a_terminal_of_the_given_size_and_no_sign_of_ci() -> None:
    program = (
        "import os, sys; print(os.get_terminal_size(), sys.stdout.isatty(), os.environ['TERM'], 'CI' in os.environ)"
    )
    environment = terminal_environment({**os.environ, "CI": "true", "TERM": "dumb"})
    status, chunks = run_in_terminal((sys.executable, "-c", program), 120, 36, environment)
    assert status == 0
    assert text(chunks) == "os.terminal_size(columns=120, lines=36) True xterm-256color False\r\n"


def test_output_has_the_time_at_which_it_came() -> None:
    _, chunks = run_in_terminal(("/bin/sh", "-c", "echo one; sleep 0.5; echo two"), 80, 24, os.environ)
    times = {chunk.data: chunk.seconds for chunk in chunks}
    assert times[b"two\r\n"] - times[b"one\r\n"] >= 0.4


def test_the_exit_status_is_that_of_the_program() -> None:
    assert run_in_terminal(("/bin/sh", "-c", "exit 7"), 80, 24, os.environ)[0] == 7
    assert run_in_terminal(("/bin/sh", "-c", "kill -KILL $$"), 80, 24, os.environ)[0] == 128 + signal.SIGKILL


def test_a_program_that_does_not_exist_is_named() -> None:
    status, chunks = run_in_terminal(("/no/such/program",), 80, 24, os.environ)
    assert (status, text(chunks)) == (127, "/no/such/program: No such file or directory\r\n")


@pytest.mark.parametrize("by_make", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_program_and_its_clean_up_is_recorded(
    number: signal.Signals, by_make: bool, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text("""
import signal, sys, time
from tests.demo.stop_signals import exit_on_stop_signals
signal.signal(signal.SIGINT, signal.default_int_handler)
exit_on_stop_signals()
try:
    print("ready", flush=True)
    time.sleep(30)
    print("not stopped")
except KeyboardInterrupt:
    sys.exit(130)
finally:
    time.sleep(0.3)
    print("cleaned")
""")
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"demo: ; @{sys.executable} {program}\n")
    command = ("make", "-f", str(makefile)) if by_make else (sys.executable, str(program))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def show(data: bytes) -> None:
        if b"ready" in data:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    status, chunks = run_in_terminal(command, 80, 24, environment, show)
    assert status == 128 + number
    assert "cleaned\r\n" in text(chunks)
    assert "not stopped" not in text(chunks)
    assert signal.getsignal(number) is before


def test_a_process_that_the_program_leaves_behind_does_not_hold_the_recording_up() -> None:
    script = "trap '' HUP; sleep 20 & echo $!"
    status, chunks = run_in_terminal(("/bin/sh", "-c", script), 80, 24, os.environ)
    os.kill(int(text(chunks)), signal.SIGKILL)
    assert status == 0
    assert chunks[-1].seconds < 15


def test_neither_output_nor_ctrl_c_after_the_end_of_the_program_holds_the_recording_up() -> None:
    left_behind = """
import os, sys, time
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
for _ in range(3000):
    print("line", flush=True)
    time.sleep(0.01)
"""
    script = 'trap "" HUP INT; "$0" -c "$1" $$ & sleep 1'
    shown: list[bytes] = []

    def show(data: bytes) -> None:
        shown.append(data)
        if len(shown) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    status, chunks = run_in_terminal(("/bin/sh", "-c", script, sys.executable, left_behind), 80, 24, os.environ, show)
    assert status == 0
    assert text(chunks).count("line") < 3000
    assert "^C" not in text(chunks), "a terminal shows the Ctrl-C that it gets"

"""Parts that all benches share: the help page, the measurement with its stop signal, and a figure's origin."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of the description, and shows an option's default where the option has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if not action.help or "(default: " in action.help or action.default in (None, False, argparse.SUPPRESS):
            return action.help
        values = action.default if isinstance(action.default, list) else [action.default]
        shown = " ".join(f'"{value}"' if " " in str(value) else str(value) for value in values)
        return f"{action.help} (default: {shown})"


def bench_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m module`` whose help page shows ``description`` and every option with its default."""
    text = (description or "").replace("``", "")
    return argparse.ArgumentParser(prog=f"python -m {module}", description=text, formatter_class=_HelpFormatter)


def exit_on_sigterm() -> None:
    """Turn SIGTERM into an ordinary exit. A plain SIGTERM would end this process and leave its servers running."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


@dataclass
class Measurement:
    """A measurement of this process, and the origin of its figures.

    Attributes:
        folder: for files that the measurement needs. It is removed afterwards.
        code: the commit when the bench started.
        load: the load before and after. Empty until the measurement has ended.
    """

    module: str
    folder: Path
    code: str
    load: str = ""

    @property
    def origin(self) -> str:
        """The :func:`provenance` of a measurement that has ended."""
        return provenance(self.module, self.load, self.code)


@contextlib.contextmanager
def measuring(module: str, code: str | None = None) -> Iterator[Measurement]:
    """Measure for the bench ``module``, on one thread of torch.

    SIGTERM then ends the process only after every ``finally``. ``code``: the commit (default: the one of now).
    """
    code = code or commit()
    import torch  # here, because benches that need no torch import this module too

    torch.set_num_threads(1)
    exit_on_sigterm()
    prefix = module.removeprefix("tests.bench.")
    with tempfile.TemporaryDirectory(prefix=f"{prefix}-bench-") as folder:
        measurement, load_before = Measurement(module, Path(folder), code), load_average()
        yield measurement
        measurement.load = load_around(load_before)


def machine() -> str:
    """The number of CPUs and the model of this machine."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].split(":", 1)[1].strip() if models else platform.machine()
    return f"{os.cpu_count()} x {name}"


def peak_resident_mebibytes() -> float:
    """The peak of this process's resident memory."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def load_average() -> float:
    """How many processes wanted to run, on average over the last minute."""
    return os.getloadavg()[0]


def load_around(load_before: float) -> str:
    """The :func:`load_average` before a measurement, and now."""
    return f"load before {load_before:.1f}, after {load_average():.1f}"


def provenance(module: str, load: str, code: str | None = None) -> str:
    """The origin of a figure: the command of this process, the machine, the commit ``code`` and the load.

    ``code`` is given where the commit may have changed since the measurement began.
    """
    command = " ".join(["python", "-m", module, *sys.argv[1:]])
    return f"`{command}`; {machine()}; commit {code or commit()}; {load}"


def commit(checkout: Path | None = None) -> str:
    """The commit of ``checkout`` (default: the working directory), marked when files differ from the commit."""
    command = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout)
    return described.stdout.strip() or "unknown"

"""Runs a program in a pod with ``kubectl exec``, and copies a folder from there.

Why kubectl: it brings the protocols of exec and the user's authentication, and whoever uses a plugin has it.

Invariants: program and arguments are passed as a list, so no shell reads them. Every run ends, at the latest after
:data:`MAX_SECONDS`. What a pod sends is unpacked as data: nothing is written outside the folder that the user named,
and no links, devices or owners come with it. A copy that breaks off leaves no file.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

from aurora_cli.cluster.cluster import Cluster
from aurora_cli.errors import ProgramFailed
from aurora_store.errors import bounded_text

MAX_SECONDS: Final = 1800.0
"""Longest run of a program. A draft of some GB takes minutes on a slow line."""
_END_OF_ARCHIVE: Final = bytes(1024)
"""A tar archive ends with two blocks of zeros."""


@dataclass(frozen=True)
class Container:
    """A container of a pod in the cluster's namespace."""

    cluster: Cluster
    pod: str
    name: str

    def run(self, *arguments: str) -> str:
        """Run a program to its end, and return what it prints. Raises :class:`ProgramFailed`."""
        command = self._command(arguments)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=MAX_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise ProgramFailed(_overdue(arguments[0])) from None
        except OSError as error:
            raise ProgramFailed(f"{command[0]} cannot be run: {error.strerror}") from error
        if done.returncode:
            raise ProgramFailed(_failure(arguments[0], done.stderr, done.returncode))
        return done.stdout

    def copy_folder(self, folder: str, to: Path) -> None:
        """Copy the files below ``folder`` of the pod into the empty folder ``to``: all of them, or none.

        Raises :class:`ProgramFailed`.
        """
        part = to / f".{secrets.token_hex(8)}.part"
        try:
            part.mkdir()
            self._unpack(folder, part)
            for file in list(part.iterdir()):
                file.rename(to / file.name)
        except OSError as error:
            raise ProgramFailed(f"the files of pod {self.pod} cannot be copied to {to}: {error.strerror}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _unpack(self, folder: str, to: Path) -> None:
        command = self._command(("tar", "-cf", "-", "-C", folder, "."))
        overdue = threading.Event()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None

            def give_up() -> None:
                overdue.set()
                process.kill()

            timer = threading.Timer(MAX_SECONDS, give_up)
            timer.start()
            try:
                _extract(process.stdout, to)
                error_text = process.stderr.read().decode(errors="replace")
            except (tarfile.TarError, OSError) as error:
                process.kill()
                broken = f"the files of pod {self.pod} cannot be unpacked: {error}"
                raise ProgramFailed(_overdue("tar") if overdue.is_set() else broken) from error
            finally:
                timer.cancel()
        if overdue.is_set():
            raise ProgramFailed(_overdue("tar"))
        if process.returncode:
            raise ProgramFailed(_failure("tar", error_text, process.returncode))

    def _command(self, arguments: Sequence[str]) -> Sequence[str]:
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise ProgramFailed("kubectl is not on PATH, and this command runs a program in a pod with it")
        place = (f"--namespace={self.cluster.namespace}", "exec", self.pod, f"--container={self.name}")
        return (kubectl, *self.cluster.kubectl_flags, *place, "--", *arguments)


class _Remembering:
    """Reads a stream, and remembers its last bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.last = (self.last + data)[-len(_END_OF_ARCHIVE) :]
        return data


def _extract(stream: IO[bytes], to: Path) -> None:
    """Unpack an archive. Raises :class:`tarfile.TarError`, also for one that ends early, which tarfile accepts."""
    source = _Remembering(stream)
    with tarfile.open(fileobj=cast(IO[bytes], source), mode="r|") as archive:  # a stream is only read
        archive.extractall(to, filter="data")
    while source.read(1 << 16):
        pass
    if source.last != _END_OF_ARCHIVE:
        raise tarfile.ReadError("the archive has no end")


def _failure(program: str, error_text: str, code: int) -> str:
    """The last line that the program wrote, without kubectl's own note about the exit code."""
    lines = [line for line in error_text.splitlines() if line.strip() and "terminated with exit code" not in line]
    return bounded_text(lines[-1].strip(), 800) if lines else f"{program} failed in the pod with exit code {code}"


def _overdue(program: str) -> str:
    return f"{program} in the pod did not end within {MAX_SECONDS:g} s; check the connection to the cluster"

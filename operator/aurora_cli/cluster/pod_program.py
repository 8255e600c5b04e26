"""Runs a program in a pod with ``kubectl exec``, and copies a folder from there.

Why kubectl: it brings the protocols of exec and the user's authentication, and whoever uses a plugin has it.

Invariants: program and arguments are passed as a list, so no shell reads them. Every run has a time limit.
What a pod sends is unpacked as data: nothing is written outside the folder that the user named, and no links, devices
or owners come with it. A copy that breaks off leaves no file.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import tarfile
import tempfile
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

    def run(self, *arguments: str, timeout_seconds: float = MAX_SECONDS) -> str:
        """Run a program to its end, and return what it prints. Raises :class:`ProgramFailed`."""
        command = self._command(arguments)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_seconds
            )
        except subprocess.TimeoutExpired:
            raise ProgramFailed(_overdue(arguments[0], timeout_seconds)) from None
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
            _move_all(part, to)
        except OSError as error:
            raise ProgramFailed(f"the files of pod {self.pod} cannot be copied to {to}: {error.strerror}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _unpack(self, folder: str, to: Path) -> None:
        command = self._command(("tar", "-cf", "-", "-C", folder, "."))
        overdue = threading.Event()
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL) as process,
        ):
            assert process.stdout is not None

            def give_up() -> None:
                overdue.set()
                process.kill()

            timer, stream = threading.Timer(MAX_SECONDS, give_up), _ArchiveStream(process.stdout)
            timer.start()
            try:
                unusable = _extract_fault(stream, to)
                if not stream.has_ended:
                    process.kill()  # it would wait until the rest of the stream is read
                code = process.wait()
            finally:
                timer.cancel()
            errors.seek(0)
            error_text = errors.read().decode(errors="replace")
        if overdue.is_set():
            raise ProgramFailed(_overdue("tar", MAX_SECONDS)) from unusable
        if code and stream.has_ended:
            raise ProgramFailed(_failure("tar", error_text, code)) from unusable
        if unusable is not None:
            raise ProgramFailed(f"the files of pod {self.pod} cannot be unpacked: {unusable}") from unusable

    def _command(self, arguments: Sequence[str]) -> Sequence[str]:
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise ProgramFailed("kubectl is not on PATH, and this command runs a program in a pod with it")
        place = (f"--namespace={self.cluster.namespace}", "exec", self.pod, f"--container={self.name}")
        return (kubectl, *self.cluster.kubectl_flags, *place, "--", *arguments)


class _ArchiveStream:
    """Reads a stream, and remembers its last bytes and whether it has ended."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.last = b""
        self.has_ended = False

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.has_ended = not data
        self.last = (self.last + data)[-len(_END_OF_ARCHIVE) :]
        return data


def _extract(source: _ArchiveStream, to: Path) -> None:
    """Unpack an archive. Raises :class:`tarfile.TarError`, also for one that ends early, which tarfile accepts."""
    with tarfile.open(fileobj=cast(IO[bytes], source), mode="r|") as archive:  # a stream is only read
        archive.extractall(to, filter="data")
    while source.read(1 << 16):
        pass
    if source.last != _END_OF_ARCHIVE:
        raise tarfile.ReadError("the archive has no end")


def _extract_fault(source: _ArchiveStream, to: Path) -> Exception | None:
    """Unpack an archive, and return the error that ended it."""
    try:
        _extract(source, to)
    except (tarfile.TarError, OSError) as error:
        return error
    return None


def _move_all(folder: Path, to: Path) -> None:
    """Move what is in ``folder`` to ``to``: all of it, or nothing."""
    with contextlib.ExitStack() as undo:
        for file in list(folder.iterdir()):
            target = to / file.name
            file.rename(target)
            undo.callback(_move_back, target, file)
        undo.pop_all()


def _move_back(moved: Path, to: Path) -> None:
    with contextlib.suppress(OSError):
        moved.rename(to)


def _failure(program: str, error_text: str, code: int) -> str:
    """The last line that the program or kubectl wrote, without kubectl's own note about the exit code."""
    lines = [line for line in error_text.splitlines() if line.strip() and "terminated with exit code" not in line]
    last = lines[-1].strip().removeprefix("error: ") if lines else f"{program} failed in the pod with exit code {code}"
    return bounded_text(last, 800)


def _overdue(program: str, seconds: float) -> str:
    return f"{program} in the pod did not end within {seconds:g} s; check the connection to the cluster"

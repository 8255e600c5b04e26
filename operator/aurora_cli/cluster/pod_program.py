"""Runs a program in a pod with ``kubectl exec``, and copies a folder from there.

Why kubectl: it brings the protocols of exec and the user's authentication, and whoever uses a plugin has it.

Invariants: program and arguments are passed as a list, so no shell reads them. What a pod sends is unpacked as data:
nothing is written outside the folder that the user named, and no links, devices or owners come with it.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aurora_cli.cluster.cluster import Cluster
from aurora_cli.errors import ProgramFailed
from aurora_store.errors import bounded_text


@dataclass(frozen=True)
class Container:
    """A container of a pod in the cluster's namespace."""

    cluster: Cluster
    pod: str
    name: str

    def run(self, *arguments: str) -> str:
        """Run a program to its end, and return what it prints. Raises :class:`ProgramFailed`."""
        done = subprocess.run(self._command(arguments), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise ProgramFailed(_failure(arguments[0], done.stderr, done.returncode))
        return done.stdout

    def copy_folder(self, folder: str, to: Path) -> None:
        """Copy the files below ``folder`` of the pod into ``to``, which is created. Raises :class:`ProgramFailed`."""
        to.mkdir(parents=True, exist_ok=True)
        command = self._command(("tar", "-cf", "-", "-C", folder, "."))
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                    archive.extractall(to, filter="data")
            except (tarfile.TarError, OSError) as error:
                process.kill()
                raise ProgramFailed(f"the files of pod {self.pod} cannot be unpacked: {error}") from error
            error_text = process.stderr.read().decode(errors="replace")
        if process.returncode:
            raise ProgramFailed(_failure("tar", error_text, process.returncode))

    def _command(self, arguments: Sequence[str]) -> Sequence[str]:
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise ProgramFailed("kubectl is not on PATH, and this command runs a program in a pod with it")
        place = (f"--namespace={self.cluster.namespace}", "exec", self.pod, f"--container={self.name}")
        return (kubectl, *self.cluster.kubectl_flags, *place, "--", *arguments)


def _failure(program: str, error_text: str, code: int) -> str:
    """The last line that the program wrote, without kubectl's own note about the exit code."""
    lines = [line for line in error_text.splitlines() if line.strip() and "terminated with exit code" not in line]
    return bounded_text(lines[-1].strip(), 800) if lines else f"{program} failed in the pod with exit code {code}"

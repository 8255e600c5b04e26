"""The one process that holds a cluster's namespaces.

Invariant: everything that a cluster runs is a descendant of this process in its pid namespace, and all of its mounts
and its network belong to the namespaces that this process keeps alive. So ending a cluster is ending one process,
recorded with its start time because process ids are reused. Nothing is ever looked up or ended by name.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.command import run, wait_until
from tests.cluster.layout import Layout
from tests.cluster.prerequisites import SEARCH_PATH

_BOUND = {
    "kubelet": "/var/lib/kubelet",
    "cni": "/var/lib/cni",
    "pods": "/var/log/pods",
    "containers": "/var/log/containers",
}
"""Directories of the state that appear at the fixed places which kubelet and CNI write to, inside the sandbox only."""


def start_time(pid: int) -> str | None:
    """The process's start in clock ticks since boot, or None when there is no such process or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


class Sandbox:
    """A cluster's namespaces, found again from any process by the record in the cluster's directory."""

    def __init__(self, cluster: Layout) -> None:
        self.cluster = cluster
        self._record = cluster.directory / "holder"

    def holder(self) -> int | None:
        """The process that holds the namespaces, if it is alive and really the one that was started."""
        try:
            pid, started = self._record.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if start_time(int(pid)) == started else None

    def start(self, init: Path) -> int:
        """Start `init` as process 1 of new namespaces and prepare the mounts. It outlives the caller."""
        log = shlex.quote(str(self.cluster.logs / "sandbox.log"))
        options = "--mount --net --pid --fork --kill-child --mount-proc --propagation private"
        script = f"cd /; setsid unshare {options} {shlex.quote(str(init))} </dev/null >>{log} 2>&1 & echo $!"
        outer = int(run("sh", "-c", script))
        children = Path(f"/proc/{outer}/task/{outer}/children")
        wait_until(
            "the sandbox's first process", lambda: start_time(outer) is None or bool(children.read_text().split()), 10
        )
        if start_time(outer) is None:
            raise RuntimeError(f"unshare ended at once; see {log}")
        pid = int(children.read_text().split()[0])
        self._record.write_text(f"{pid} {start_time(pid)}")
        wait_until("the sandbox's init", lambda: os.readlink(f"/proc/{pid}/exe") == str(init), 10)
        self._prepare_mounts()
        return pid

    def _prepare_mounts(self) -> None:
        """Its own /run and state directories: two clusters, or one and the host's own containerd, never meet."""
        commands = ["mount -t tmpfs -o mode=755 tmpfs /run", "mkdir -p /run/lock /run/netns"]
        for name, target in _BOUND.items():
            source = self.cluster.directory / name
            source.mkdir(parents=True, exist_ok=True)
            Path(target).mkdir(parents=True, exist_ok=True)
            commands.append(f"mount --bind {shlex.quote(str(source))} {target}")
        commands += ["ip link set lo up", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
        self.run("sh", "-ec", "\n".join(commands))

    def _enter(self) -> list[str]:
        pid = self.holder()
        if pid is None:
            raise RuntimeError(f"cluster {self.cluster.name} is down")
        return ["nsenter", "--target", str(pid), "--mount", "--net", "--pid"]

    def environment(self) -> dict[str, str]:
        return {"PATH": SEARCH_PATH, "HOME": "/root", "TMPDIR": "/tmp"}  # noqa: S108

    def run(self, *command: str | Path, timeout: float = 120) -> str:
        """Run a command inside and return what it printed."""
        return run(*self._enter(), "--", *command, env=self.environment(), timeout=timeout)

    def spawn(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> int:
        """Start a daemon inside, writing to log/<name>.log; returns its process id in the sandbox's own counting.

        The shell ends at once and the daemon becomes a child of the sandbox's init, so no helper process stays outside.
        """
        words = shlex.join([str(word) for word in command])
        variables = {**self.environment(), **(env or {})}
        log = shlex.quote(str(self.cluster.logs / f"{name}.log"))
        settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in variables.items())
        script = f"cd /; exec </dev/null; env -i {settings} setsid {words} >>{log} 2>&1 & echo $!"
        pid = int(self.run("sh", "-c", script))
        (self.cluster.directory / f"{name}.pid").write_text(str(pid))
        return pid

    def running(self, name: str) -> bool:
        """Whether the daemon that was started under this name is still alive."""
        recorded = self.cluster.directory / f"{name}.pid"
        if self.holder() is None or not recorded.exists():
            return False
        state = self.run("sh", "-c", f"cat /proc/{recorded.read_text()}/stat 2>/dev/null || true").rpartition(")")[2]
        return bool(state) and state.split()[0] not in "ZX"

    def signal(self, name: str, number: signal.Signals) -> None:
        """Signal a daemon by its recorded id. The id counts inside the sandbox, so it can never mean a host process."""
        self.run("kill", f"-{int(number)}", (self.cluster.directory / f"{name}.pid").read_text())

    def stop(self, timeout: float = 30) -> None:
        """End the one process. It is gone only after the kernel has ended everything in its pid namespace."""
        pid = self.holder()
        if pid is not None:
            handle = os.pidfd_open(pid)
            try:
                if self.holder() == pid:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)
            wait_until("the end of the sandbox", lambda: not Path(f"/proc/{pid}").exists(), timeout)
        self._record.unlink(missing_ok=True)

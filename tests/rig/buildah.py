"""``python -m tests.rig.buildah [TARGET...]``: builds targets of the Dockerfile with buildah, without a registry.

The Dockerfile's base image cannot be downloaded without a registry. A substitute is therefore made from this machine's
own Debian sources: Debian's Python 3.11 with pip, tagged with the base image's full name. The Dockerfile itself is
built unchanged. Default targets: operator and agent. The target `runtime` installs SGLang's whole CUDA stack (about
11 GB), so it must be named.
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
BASE_IMAGE = "docker.io/library/python:3.11-slim"
BASE_PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PIP_CONFIG = "[global]\ncert = /run/host-ca.crt\ntimeout = 180\n"
MMDEBSTRAP_HOOKS = (
    'rm -f "$1"/usr/lib/python3.*/EXTERNALLY-MANAGED',
    'ln -s /usr/bin/python3 "$1"/usr/local/bin/python',
    'rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/var/lib/apt/lists',
)


def _buildah(*arguments: str | Path, timeout_seconds: float = 3600) -> str:
    storage = cache_root() / "buildah"
    command = [
        "buildah",
        "--root",
        storage / "root",
        "--runroot",
        storage / "run",
        "--storage-driver",
        "overlay",
        *arguments,
    ]
    completed = subprocess.run(command, check=True, timeout=timeout_seconds, stdout=subprocess.PIPE, text=True)
    return completed.stdout


MAX_BUILDAH_PROCESSES = 32768
"""The limit of processes for buildah. A higher one is refused without CAP_SYS_RESOURCE."""


def _ulimit(kind: int) -> str:
    """This process's hard limit of `kind`, in the format of buildah's option --ulimit.

    Lowers this process's limit of processes to the highest that buildah accepts.
    """
    hard = resource.getrlimit(kind)[1]
    if kind == resource.RLIMIT_NPROC and hard > MAX_BUILDAH_PROCESSES:
        hard = MAX_BUILDAH_PROCESSES
        resource.setrlimit(kind, (hard, hard))
    return f"{hard}:{hard}"


def ensure_base_image() -> None:
    """Import the substitute for the Dockerfile's base image. The first call makes it."""
    if BASE_IMAGE in _buildah("images", "--format", "{{.Name}}:{{.Tag}}"):
        return
    archive = cache_root() / "images" / "python-base.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        unfinished = archive.with_suffix(".part.tar")
        sources = sorted(Path("/etc/apt").glob("sources.list.d/*.sources")) or [Path("/etc/apt/sources.list")]
        options = [f"--include={BASE_PACKAGES}", *(f"--customize-hook={hook}" for hook in MMDEBSTRAP_HOOKS)]
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", *options, "", unfinished, sources[0]],
            check=True,
            timeout=1800,
        )
        unfinished.rename(archive)
    container = _buildah("from", "scratch").strip()
    _buildah("add", "--quiet", container, archive, "/")
    _buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", "--cmd", "python", container)
    _buildah("commit", "--quiet", "--rm", container, BASE_IMAGE)


def build(target: str) -> str:
    """Build one target of the Dockerfile and return the image's name."""
    name = f"localhost/aurora-{target}:dev"
    with tempfile.TemporaryDirectory() as scratch:
        pip_config = Path(scratch, "pip.conf")
        pip_config.write_text(PIP_CONFIG)
        _buildah(
            *("build", "--isolation", "chroot", "--network", "host", "--pull=never", "--format", "docker", "--layers"),
            *(
                "--ulimit",
                f"nofile={_ulimit(resource.RLIMIT_NOFILE)}",
                "--ulimit",
                f"nproc={_ulimit(resource.RLIMIT_NPROC)}",
            ),
            *("-v", f"{CERTIFICATES}:/run/host-ca.crt:ro", "-v", f"{pip_config}:/etc/pip.conf:ro"),
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
        print(f"error: {' and '.join(missing)} not found: install them first", file=sys.stderr)
        return 1
    ensure_base_image()
    for target in sys.argv[1:] or ("operator", "agent"):
        print(build(target), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

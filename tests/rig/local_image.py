"""The one image of the local cluster: this machine's light Python environment, this checkout's packages and SeaweedFS.

The Dockerfile is how users build; without a container engine or a registry the rig makes an equivalent image from
files, in seconds, so that what runs in the pods is always this checkout.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.assets.cache import cache_root
from tests.cluster.images.image_build import python_image

ROOT = Path(__file__).resolve().parents[2]
SITE = "/opt/aurora/site"
PACKAGES = (ROOT / "crds", ROOT / "operator", ROOT / "runtime")


def _digest(light: Path) -> str:
    digest = hashlib.sha256(str(light).encode())
    for package in PACKAGES:
        for file in sorted(package.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode())
                digest.update(file.read_bytes())
    digest.update((ROOT / "pyproject.toml").read_bytes())
    digest.update((ROOT / "tests/cluster/images/image_build.py").read_bytes())
    return digest.hexdigest()[:12]


def local_image() -> tuple[str, Path]:
    """Tag and archive of the image, built when this checkout's code has none yet."""
    light = Path((ROOT / ".venv/light").read_text().strip())
    tag = f"aurora-local:{_digest(light)}"
    archive = cache_root() / "images" / f"{tag.replace(':', '-')}.tar"
    if not archive.exists():
        for old in archive.parent.glob("aurora-local-*.tar"):
            old.unlink()
        with tempfile.TemporaryDirectory() as scratch:
            site = Path(scratch, "site")
            uv = cache_root() / "bootstrap/bin/uv"
            options: list[str | Path] = ["-q", "--no-deps", "--compile-bytecode", "--python", sys.executable]
            subprocess.run([uv, "pip", "install", *options, "--target", site, ROOT], check=True, timeout=300)
            python_image(
                archive,
                tag,
                light,
                extra={"/usr/bin/weed": (ROOT / ".venv/bin/weed").resolve(), SITE: site},
                env={"PYTHONPATH": SITE, "PATH": f"{light}/bin:/usr/local/bin:/usr/bin:/bin"},
            )
    return tag, archive

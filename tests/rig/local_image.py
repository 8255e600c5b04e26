"""Makes the one image that all pods of the local cluster use.

The image contains the light Python environment (requirements/light.txt, without torch), this checkout's packages and
SeaweedFS. Users build images with the Dockerfile, which needs a container engine and a registry. The rig builds an
equivalent image from files, in seconds. The tag is a hash of the code, so pods always run this checkout.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from tests.assets.cache import cache_root
from tests.cluster.images.image_build import python_image

ROOT = Path(__file__).resolve().parents[2]
SITE_IN_IMAGE = "/opt/aurora/site"
PROGRAMS_IN_IMAGE = f"{SITE_IN_IMAGE}/bin"
"""The console scripts of the packages, such as `aurora-draft`."""
PACKAGE_ROOTS = ("crds", "operator", "runtime")


def _content_digest(light: Path, checkout: Path) -> str:
    digest = hashlib.sha256(str(light).encode())
    for package in PACKAGE_ROOTS:
        for file in sorted((checkout / package).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(checkout)).encode())
                digest.update(file.read_bytes())
    digest.update((checkout / "pyproject.toml").read_bytes())
    for builder in ("tests/cluster/images/image_build.py", "tests/rig/local_image.py"):
        digest.update((ROOT / builder).read_bytes())
    return digest.hexdigest()[:12]


def local_image(checkout: Path = ROOT) -> tuple[str, Path]:
    """The image's tag and archive. The image is built if the code of ``checkout`` has none yet."""
    light = Path((ROOT / ".venv/light").read_text().strip())
    tag = f"aurora-local:{_content_digest(light, checkout)}"
    archive = cache_root() / "images" / f"{tag.replace(':', '-')}.tar"
    if not archive.exists():
        if checkout == ROOT:
            for old in archive.parent.glob("aurora-local-*.tar"):
                old.unlink()
        with tempfile.TemporaryDirectory() as scratch:
            site = Path(scratch, "site")
            uv = cache_root() / "bootstrap/bin/uv"
            options: list[str | Path] = ["-q", "--no-deps", "--compile-bytecode", "--python", sys.executable]
            subprocess.run([uv, "pip", "install", *options, "--target", site, checkout], check=True, timeout=300)
            _write_programs(site / "bin", checkout)
            python_image(
                archive,
                tag,
                light,
                extra={"/usr/bin/weed": (ROOT / ".venv/bin/weed").resolve(), SITE_IN_IMAGE: site},
                env={
                    "PYTHONPATH": SITE_IN_IMAGE,
                    "PATH": f"{light}/bin:{PROGRAMS_IN_IMAGE}:/usr/local/bin:/usr/bin:/bin",
                },
            )
    return tag, archive


def _write_programs(folder: Path, checkout: Path) -> None:
    """Write the console scripts of ``checkout`` so that the `python` of PATH runs them.

    Those of the installer name an interpreter of this machine, which pods do not have.
    """
    programs: dict[str, str] = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["scripts"]
    for name, entry in programs.items():
        module, _, function = entry.partition(":")
        program = folder / name
        program.write_text(
            f"#!/usr/bin/env python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        )
        program.chmod(0o755)

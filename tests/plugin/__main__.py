"""``make plugin``: ``python -m tests.plugin PACKAGES --to FOLDER`` builds ``kubectl aurora`` for this platform.

Runs in the environment of ``requirements/plugin.txt``, with nothing else of the checkout installed. ``PACKAGES`` has
the packages of the wheel. ``FOLDER`` gets ``bin/kubectl-aurora``, its archive, the archive's SHA-256, and the manifest
with which krew installs the archive.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.plugin.archive import write_archive
from tests.plugin.krew_manifest import ROOT, Platform, UnknownPlatform, archive_name, manifest
from tests.plugin.third_party_notices import notices

SPEC: Final = Path(__file__).with_name("kubectl-aurora.spec")
FIXED: Final = {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0"}
"""With these PyInstaller writes an equal file from equal packages."""


def build_program(packages: Path, folder: Path) -> Path:
    """Build the one file in ``folder/bin``. Raises ``CalledProcessError``."""
    places = ("--distpath", folder / "bin", "--workpath", folder / "work")
    command = (sys.executable, "-m", "PyInstaller", "--log-level", "WARN", *places, SPEC)
    subprocess.run(command, check=True, env=os.environ | FIXED | {"PYTHONPATH": str(packages.resolve())})
    return folder / "bin" / SPEC.stem


def build(packages: Path, folder: Path, platform: Platform) -> Path:
    """Build everything. Returns the manifest. Raises :class:`UnknownPlatform`."""
    archive = folder / archive_name(platform)
    program = build_program(packages, folder)
    third_party = folder / "THIRD_PARTY_NOTICES"
    third_party.write_text(notices())
    write_archive(archive, {"bin/kubectl-aurora": program, "LICENSE": ROOT / "LICENSE", third_party.name: third_party})
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.with_name(f"{archive.name}.sha256").write_text(f"{digest}  {archive.name}\n")
    written = folder / "aurora.yaml"
    written.write_text(manifest(platform, digest))
    return written


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.plugin", description="Build kubectl aurora for this platform.")
    parser.add_argument("packages", type=Path, help="folder with the packages of the wheel")
    parser.add_argument("--to", type=Path, required=True, help="folder of what is built")
    options = parser.parse_args()
    platform = Platform.of_this_machine()
    try:
        written = build(options.packages, options.to, platform)
    except UnknownPlatform as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    archive = options.to / archive_name(platform)
    print(f"kubectl krew install --manifest={written} --archive={archive}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

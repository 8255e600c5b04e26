"""``make plugin``: ``python -m tests.plugin PACKAGES --to FOLDER`` builds ``kubectl aurora`` for this platform.

Runs in the environment of ``requirements/plugin.txt``, with nothing else of the checkout installed. ``PACKAGES`` has
the packages of the wheel. ``FOLDER`` gets ``bin/kubectl-aurora`` and the licences of what the file holds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

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


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.plugin", description="Build kubectl aurora for this platform.")
    parser.add_argument("packages", type=Path, help="folder with the packages of the wheel")
    parser.add_argument("--to", type=Path, required=True, help="folder of what is built")
    options = parser.parse_args()
    program = build_program(options.packages, options.to)
    (options.to / "THIRD_PARTY_NOTICES").write_text(notices())
    print(f"put {program} into a folder of PATH")


if __name__ == "__main__":
    main()

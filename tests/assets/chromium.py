"""Finds a headless Chromium, and installs one where apt may: once per machine, before the tests run.

Why a step of its own: the tests of the report's page are unit tests, and a unit test installs nothing. In CI a missing
browser is a failure, because nobody would notice the skipped tests there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Final

NAMES: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PACKAGES: Final = ("chromium-headless-shell", "fonts-dejavu-core")
"""Debian's names. Without a font the browser draws no letter."""
MISSING: Final = (
    "no Chromium on this machine. Run `make browser` as root where apt-get is, or install one of " + ", ".join(NAMES)
)
_UPDATE_SECONDS, _INSTALL_SECONDS = 300, 600
_LOCK: Final = ("-o", "DPkg::Lock::Timeout=300")
"""Another target of make may install packages at the same time."""


def browser_path() -> str | None:
    """The Chromium of this machine, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


def is_required() -> bool:
    """Whether a missing browser is a failure: in CI."""
    return bool(os.environ.get("CI"))


def install() -> str:
    """Install a Chromium unless there is one. Returns why there is none; empty when there is one."""
    if browser_path() is not None:
        return ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return MISSING
    print(f"installing {' '.join(PACKAGES)}", file=sys.stderr, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    arguments = ("-qq", *_LOCK, "install", "-y", "--no-install-recommends", *PACKAGES)
    try:
        for command, seconds in ((("-qq", "update"), _UPDATE_SECONDS), (arguments, _INSTALL_SECONDS)):
            subprocess.run(
                ["apt-get", *command], check=True, env=environment, timeout=seconds, stdout=subprocess.DEVNULL
            )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return f"{MISSING}: {error}"
    return "" if browser_path() is not None else MISSING


def main() -> int:
    """Install, or say what is missing. Returns the exit status: 1 if a browser is required and there is none."""
    problem = install()
    if not problem:
        return 0
    required = is_required()
    consequence = "" if required else ". The tests of the report's page are skipped"
    print(f"browser: {'error' if required else 'note'}: {problem}{consequence}", file=sys.stderr)
    return int(required)


if __name__ == "__main__":
    sys.exit(main())

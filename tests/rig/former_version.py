"""A checkout of the version before this one, for tests of upgrades."""

from __future__ import annotations

import os
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

from tests.rig.local_image import PACKAGE_ROOTS, ROOT

REVISION_VARIABLE = "AURORA_UPGRADE_FROM"
"""Names another git revision to upgrade from."""
_SHIPPED = (*PACKAGE_ROOTS, "charts", "pyproject.toml", "README.md", "LICENSE")


def former_revision() -> str:
    """The commit before the last one that changed the packages or the chart.

    Raises:
        LookupError: The clone is too shallow to hold that commit.
    """
    named = os.environ.get(REVISION_VARIABLE)
    if named:
        return _git("rev-parse", "--verify", f"{named}^{{commit}}")
    changed = _git("rev-list", "-1", "HEAD", "--", *PACKAGE_ROOTS, "charts", "pyproject.toml")
    try:
        return _git("rev-parse", "--verify", f"{changed}~1")
    except subprocess.CalledProcessError as error:
        raise LookupError(f"the clone has no commit before {changed}; fetch the history first") from error


def check_out_former_version(folder: Path) -> Path:
    """Write the packages and the chart of :func:`former_revision` to ``folder``, and return the folder."""
    archive = subprocess.run(
        ["git", "archive", "--format=tar", former_revision(), "--", *_SHIPPED],
        cwd=ROOT, check=True, capture_output=True, timeout=60,
    ).stdout  # fmt: skip
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def _git(*arguments: str) -> str:
    completed = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    return completed.stdout.strip()

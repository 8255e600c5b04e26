"""Whatever is installed into the images and the tests' environments is locked, with a hash for each package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("agent", "bootstrap", "build", "cpu", "light", "operator", "runtime")


def entries(lock: str) -> list[str]:
    """The requirements of a lock file, each with its hashes on one line."""
    text = (ROOT / f"requirements/{lock}.txt").read_text().replace("\\\n", "")
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_a_version_and_a_hash_and_no_source_of_its_own(lock: str) -> None:
    found = entries(lock)
    assert found
    locked = re.compile(r"[A-Za-z0-9._\[\]-]+==\S+(?: ; [^#]+?)?(?: +--hash=sha256:[0-9a-f]{64})+")
    assert [entry.split()[0] for entry in found if not locked.fullmatch(entry)] == []


def test_every_installation_checks_hashes() -> None:
    scripts = [ROOT / "Dockerfile", ROOT / "tests/setup/python.sh"]
    commands = [line for script in scripts for line in script.read_text().splitlines() if re.search(r" -r \S", line)]
    assert len(commands) >= 6
    assert [command for command in commands if "--require-hashes" not in command] == []


def test_the_build_backend_is_the_locked_one_everywhere() -> None:
    (backend,) = re.findall(r'^requires = \["(\S+)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert backend in {entry.split()[0] for entry in entries("build")}
    assert "--no-build-isolation" in (ROOT / "Dockerfile").read_text()
    assert "--build-constraints requirements/build.txt" in (ROOT / "tests/setup/python.sh").read_text()

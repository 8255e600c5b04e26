"""Whatever is installed into the images and the tests' environments is locked, with a hash for each package.

``make audit`` ask the registry. Here their parts see the locks and a report that pip could write.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.supply_chain.__main__ import AUDITED, checked_metadata
from tests.supply_chain.licenses import UNKNOWN, Policy
from tests.supply_chain.locks import REQUIREMENTS, ROOT, LockedPackage, locked_packages

LOCKS = ("agent", "bootstrap", "build", "cpu", "light", "operator", "plugin", "runtime", "supply-chain")
OTHER_SGLANG = tuple(path.stem for path in sorted(REQUIREMENTS.glob("sglang-*.txt")))
"""Installed only beside the tests' environment, for the tests of another SGLang, so these locks are not audited."""
POLICY = Policy.read(REQUIREMENTS / "licenses.toml")


@pytest.mark.parametrize("lock", [*LOCKS, *OTHER_SGLANG])
def test_every_package_has_a_version_and_a_hash_and_no_source_of_its_own(lock: str) -> None:
    assert locked_packages(REQUIREMENTS / f"{lock}.txt")


@pytest.mark.parametrize(
    "entry",
    [
        "boto3==1.40.0",
        "boto3>=1.40 --hash=sha256:" + "0" * 64,
        "boto3 @ https://files.example/boto3.whl --hash=sha256:" + "0" * 64,
        "--extra-index-url https://packages.example",
    ],
)
def test_a_lock_with_an_entry_that_could_change_is_refused(tmp_path: Path, entry: str) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(entry)
    with pytest.raises(ValueError, match="run make lock"):
        locked_packages(lock)


def test_every_installation_checks_hashes() -> None:
    scripts = [ROOT / "Dockerfile", ROOT / "tests/setup/environments.sh", ROOT / "tests/setup/sglang.sh"]
    commands = [line for script in scripts for line in script.read_text().splitlines() if re.search(r" -r \S", line)]
    assert len(commands) >= 6
    assert [command for command in commands if "--require-hashes" not in command] == []


def test_images_hold_the_locked_packages_and_no_installer() -> None:
    commands = re.findall(
        r"python -m venv.* /opt/aurora$|python -m venv.* /opt/aurora ", (ROOT / "Dockerfile").read_text()
    )
    assert len(commands) == len(POLICY.allowed)
    assert [command for command in commands if "--without-pip" not in command] == []


def test_the_build_backend_is_the_locked_one_everywhere() -> None:
    (backend,) = re.findall(r'^requires = \["(\S+)"\]$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    locked = {f"{package.name}=={package.version}" for package in locked_packages(REQUIREMENTS / "build.txt")}
    assert backend in locked
    assert "--no-build-isolation" in (ROOT / "Dockerfile").read_text()
    assert "--build-constraints requirements/build.txt" in (ROOT / "tests/setup/python.sh").read_text()


def test_every_lock_that_is_installed_from_is_audited() -> None:
    # light.txt has the packages of operator.txt and agent.txt.
    assert {*AUDITED, "light"} == set(LOCKS)


@pytest.mark.parametrize(
    ("image", "expression", "allowed"),
    [
        ("operator", "MIT", True),
        ("operator", "GPL-3.0-only", False),
        ("operator", "GPL-3.0-only OR MIT", True),
        ("operator", "GPL-3.0-only AND MIT", False),
        ("operator", "MIT AND (GPL-3.0-only OR ISC)", True),
        ("operator", "MIT OR GPL-3.0-only AND AGPL-3.0-only", True),
        ("operator", "Apache-2.0 WITH LLVM-exception", True),
        ("operator", "MIT WITH LLVM-exception", False),
        ("operator", UNKNOWN, False),
        ("operator", "LicenseRef-NVIDIA-Proprietary", False),
        ("runtime", "LicenseRef-NVIDIA-Proprietary", True),
    ],
)
def test_an_image_holds_allowed_licences_only(image: str, expression: str, allowed: bool) -> None:
    assert POLICY.allows(image, expression) is allowed


def test_metadata_of_a_file_that_is_not_locked_is_refused() -> None:
    locked = {"package": LockedPackage("package", "1.0", frozenset({"a" * 64}))}
    entry = {"metadata": {"name": "Package"}, "download_info": {"archive_info": {"hashes": {"sha256": "a" * 64}}}}
    assert checked_metadata(locked, entry) == ("package", {"name": "Package"})
    entry["download_info"]["archive_info"]["hashes"]["sha256"] = "b" * 64  # type: ignore[index]
    with pytest.raises(ValueError, match="not in the lock file"):
        checked_metadata(locked, entry)

"""The archive, the krew manifest and the licences that `make plugin` adds to the program."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.plugin.archive import write_archive
from tests.plugin.krew_manifest import TEMPLATE, Platform, UnknownPlatform, archive_name, manifest, version
from tests.plugin.third_party_notices import notices

DIGEST = "a" * 64
LINUX = Platform("linux", "arm64")


def test_the_manifest_is_the_template_with_the_entry_of_one_platform() -> None:
    template, filled = yaml.safe_load(TEMPLATE.read_text()), yaml.safe_load(manifest(LINUX, DIGEST))
    (entry,) = filled["spec"].pop("platforms")
    assert entry["selector"] == {"matchLabels": {"os": "linux", "arch": "arm64"}}
    assert (entry["sha256"], entry["bin"]) == (DIGEST, "bin/kubectl-aurora")
    assert entry["uri"].endswith(f"/{version()}/{archive_name(LINUX)}")
    assert filled["spec"].pop("version") == version()
    del template["spec"]["platforms"], template["spec"]["version"]
    assert filled == template


def test_the_archive_is_named_by_version_and_platform() -> None:
    assert archive_name(LINUX) == f"kubectl-aurora_{version()}_linux_arm64.tar.gz"


def test_a_platform_that_the_template_does_not_name_is_refused() -> None:
    with pytest.raises(UnknownPlatform, match="has no platform plan9/mips: add it there"):
        archive_name(Platform("plan9", "mips"))


def test_equal_files_give_an_equal_archive_whatever_their_times_and_order(tmp_path: Path) -> None:
    program, text = tmp_path / "program", tmp_path / "text"
    program.write_text("program")
    program.chmod(0o700)
    text.write_text("text")
    first, second = tmp_path / "first.tar.gz", tmp_path / "second.tar.gz"
    write_archive(first, {"bin/program": program, "LICENSE": text})
    os.utime(program, (1, 1))
    text.chmod(0o600)
    write_archive(second, {"LICENSE": text, "bin/program": program})
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        found = {entry.name: (entry.mode, entry.mtime, entry.uid) for entry in archive}
    assert found == {"LICENSE": (0o644, 0, 0), "bin/program": (0o755, 0, 0)}


def test_the_notices_hold_the_licences_of_python_and_of_packages() -> None:
    found = notices()
    assert "\npydantic 2." in found
    assert "Samuel Colvin" in found
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in found

"""A browser is installed where that is possible. Elsewhere tests are skipped with a reason, and fail in CI."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.assets import chromium


@dataclass
class Machine:
    """A machine whose programs and user a test sets."""

    programs: set[str]
    user: int = 0
    apt_works: bool = True
    calls: list[Sequence[str]] = field(default_factory=list)

    def which(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if name in self.programs else None

    def run(self, arguments: Sequence[str], **_: Any) -> None:
        self.calls.append(arguments)
        if not self.apt_works:
            raise subprocess.CalledProcessError(100, list(arguments))
        if "install" in arguments:
            self.programs |= {chromium.NAMES[0]} & set(arguments)

    def put_on(self, monkeypatch: pytest.MonkeyPatch, *, ci: bool) -> None:
        monkeypatch.setattr("shutil.which", self.which)
        monkeypatch.setattr("subprocess.run", self.run)
        monkeypatch.setattr(os, "geteuid", lambda: self.user)
        monkeypatch.setenv("CI", "true" if ci else "")


@pytest.mark.parametrize("name", chromium.NAMES)
def test_a_browser_that_is_there_costs_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({name, "apt-get"})
    machine.put_on(monkeypatch, ci=True)
    assert (chromium.main(), machine.calls) == (0, [])


def test_a_missing_browser_is_installed_by_root(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"apt-get"})
    machine.put_on(monkeypatch, ci=True)
    assert chromium.main() == 0
    assert chromium.browser_path() == "/usr/bin/chromium-headless-shell"
    assert [call[-1] for call in machine.calls] == ["update", "fonts-dejavu-core"]


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(Machine({"apt-get"}, user=1000), id="no right to install"),
        pytest.param(Machine(set()), id="no apt-get"),
        pytest.param(Machine({"apt-get"}, apt_works=False), id="apt-get fails"),
    ],
)
@pytest.mark.parametrize("ci", [True, False])
def test_without_a_browser_setup_fails_in_ci_only_and_says_what_to_do(
    machine: Machine, ci: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.put_on(monkeypatch, ci=ci)
    assert chromium.main() == int(ci)
    said = capsys.readouterr().err
    assert "no Chromium on this machine. Run `make browser` as root" in said
    assert ("are skipped" in said) is not ci

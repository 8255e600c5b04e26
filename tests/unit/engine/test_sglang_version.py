"""Hooks are installed only into an SGLang that they were tested with."""

from __future__ import annotations

import pytest

from aurora_runtime import sglang_version
from aurora_runtime.errors import EngineMismatch
from aurora_runtime.sglang_version import SUPPORTED_SGLANG, require_sglang


def test_another_version_is_refused_with_all_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("0.5.21", "0.5.24", "0.5.22.post1"):
        monkeypatch.setattr(sglang_version, "installed_version", lambda _, other=other: other)
        with pytest.raises(
            EngineMismatch, match=rf"SGLang {other} is installed, but the launcher needs SGLang 0\.5\.2"
        ):
            require_sglang("the launcher")


@pytest.mark.parametrize("version", SUPPORTED_SGLANG)
def test_each_supported_version_is_accepted_and_named(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: version)
    assert require_sglang("the launcher") == version

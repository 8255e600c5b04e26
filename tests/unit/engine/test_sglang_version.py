"""Hooks are installed only into the SGLang that they were written for."""

from __future__ import annotations

import pytest

from aurora_runtime import sglang_version
from aurora_runtime.errors import EngineMismatch
from aurora_runtime.sglang_version import SGLANG_VERSION, require_parameters, require_sglang


def test_another_version_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: "0.5.24")
    with pytest.raises(EngineMismatch, match=r"0\.5\.24 is installed, but the launcher needs SGLang 0\.5\.23"):
        require_sglang("the launcher")
    monkeypatch.setattr(sglang_version, "installed_version", lambda _: SGLANG_VERSION)
    require_sglang("the launcher")


def test_an_error_names_a_missing_or_changed_function() -> None:
    with pytest.raises(EngineMismatch, match="no_such_function"):
        require_parameters("json.no_such_function", ("s",))
    with pytest.raises(EngineMismatch, match=r"json\.load takes fp"):
        require_parameters("json.load", ("file",))
    require_parameters("textwrap.dedent", ("text",))

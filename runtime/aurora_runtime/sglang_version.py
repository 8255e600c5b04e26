"""The one place that knows which versions of SGLang this runtime was tested with.

:mod:`aurora_runtime.sglang_uses` checks the functions that we use. A function may also keep its parameters and change
what it does, which only the tests of a version find. So a version without such tests is refused. This module imports
neither sglang nor torch, because the launcher imports it.
"""

from __future__ import annotations

from importlib.metadata import version as installed_version
from typing import Final

from aurora_runtime.errors import EngineMismatch

SUPPORTED_SGLANG: Final = ("0.5.22", "0.5.23")
"""The versions of SGLang that the runtime works with. ``docs/reference/sglang-versions.md`` says what was tested."""


def require_sglang(user: str) -> str:
    """The installed version of SGLang.

    Raises :class:`EngineMismatch` unless it is one of :data:`SUPPORTED_SGLANG`, which ``user`` needs.
    """
    installed = installed_version("sglang")
    if installed not in SUPPORTED_SGLANG:
        supported = " or ".join(SUPPORTED_SGLANG)
        raise EngineMismatch(f"SGLang {installed} is installed, but {user} needs SGLang {supported}")
    return installed

"""The one place that knows which SGLang this runtime was written for, and that checks the installed one.

Our plugins wrap private functions of SGLang. A changed function would corrupt answers or traces silently. So each
plugin checks SGLang's version, or the parameters of the functions that it wraps, before it installs its hooks. This
module imports neither sglang nor torch, because the launcher imports it.
"""

from __future__ import annotations

import inspect
import pkgutil
from importlib.metadata import version as installed_version
from typing import Final

from aurora_runtime.errors import EngineMismatch

SGLANG_VERSION: Final = "0.5.23"
"""The version of SGLang whose internals this runtime knows."""


def require_sglang(user: str) -> None:
    """Raise :class:`EngineMismatch` unless the installed SGLang is :data:`SGLANG_VERSION`, which ``user`` needs."""
    if (installed := installed_version("sglang")) != SGLANG_VERSION:
        raise EngineMismatch(f"SGLang {installed} is installed, but {user} needs SGLang {SGLANG_VERSION}")


def require_parameters(target: str, parameters: tuple[str, ...]) -> None:
    """Raise :class:`EngineMismatch` unless the function at the dotted path ``target`` takes exactly ``parameters``."""
    try:
        function = pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        raise EngineMismatch(f"this SGLang has no {target}: {error}") from error
    actual = tuple(inspect.signature(function).parameters)
    if actual != parameters:
        raise EngineMismatch(f"{target} takes {', '.join(actual)}; the hook needs {', '.join(parameters)}")

"""What our plugins use of SGLang's private functions, and the check that the installed SGLang has it.

Our plugins wrap and call private functions of SGLang. A changed function would corrupt answers or traces silently. So
each plugin lists its hooks and calls, and checks them before it installs the hooks. A check asks only for what is used.
A hook's own signature says what it reads: a parameter that it names must exist at the same place, and a parameter that
it does not name must pass through ``*args`` and ``**kwargs``. So SGLang may add parameters that we never touch.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from inspect import Parameter
from typing import Any

from aurora_runtime.errors import EngineMismatch

_BY_PLACE_OR_NAME = Parameter.POSITIONAL_OR_KEYWORD
_PASSED_BY_ARGS = frozenset({Parameter.VAR_POSITIONAL, Parameter.POSITIONAL_ONLY, _BY_PLACE_OR_NAME})
_PASSED_BY_KWARGS = frozenset({Parameter.VAR_KEYWORD, Parameter.KEYWORD_ONLY, _BY_PLACE_OR_NAME})


class HookKind(Enum):
    """When a hook runs, and what it is called with before the function's own arguments.

    The values are those of SGLang's ``HookType`` (sglang/srt/plugins/hook_registry.py).
    """

    BEFORE = "before"
    """Before the function, without a further argument."""
    AFTER = "after"
    """After the function, with its result."""
    AROUND = "around"
    """In place of the function, with the function."""


@dataclass(frozen=True)
class Hook:
    """A function of SGLang and our hook.

    Attributes:
        target: the function's dotted name.
        wrapper: the hook. A first parameter ``self`` of the function may have another name here.
        optional: parameters that the hook names although some supported SGLang lacks them.
    """

    target: str
    wrapper: Callable[..., Any]
    kind: HookKind
    optional: frozenset[str] = frozenset()

    def check(self) -> None:
        """Raise :class:`EngineMismatch` unless the hook takes all arguments that the function takes."""
        function = _parameters(self.target)
        wrapper = tuple(inspect.signature(self.wrapper).parameters.values())
        if self.kind is not HookKind.BEFORE:
            wrapper = wrapper[1:]
        if fault := _misfit(wrapper, function, self.optional):
            raise EngineMismatch(f"{self.target} takes {_names(function)}, but {fault}")


@dataclass(frozen=True)
class Call:
    """A function or class of SGLang that we call.

    Attributes:
        target: its dotted name.
        places: names of the parameters that we pass by place, in order. None stands for any name.
        names: parameters that we pass by name.
    """

    target: str
    places: tuple[str | None, ...] = ()
    names: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise :class:`EngineMismatch` unless the function can be called like this, with the same meaning."""
        function = _parameters(self.target)
        at_places, rest = function[: len(self.places)], function[len(self.places) :]
        right = len(at_places) == len(self.places) and all(
            parameter.kind in _PASSED_BY_ARGS and wanted in (None, parameter.name)
            for parameter, wanted in zip(at_places, self.places, strict=True)
        )
        known = {parameter.name for parameter in rest if parameter.kind in _PASSED_BY_KWARGS}
        needed = {
            parameter.name
            for parameter in rest
            if parameter.default is Parameter.empty
            and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        }
        if not right or not needed <= set(self.names) <= known:
            ours = ", ".join([*(name or "any" for name in self.places), *self.names])
            raise EngineMismatch(f"{self.target} takes {_names(function)}, but we pass {ours}")


@dataclass(frozen=True)
class Name:
    """Something else of SGLang that we read, such as a member of an enumeration."""

    target: str

    def check(self) -> None:
        """Raise :class:`EngineMismatch` unless this SGLang has it."""
        _resolve(self.target)


def check_all(uses: Sequence[Hook | Call | Name]) -> None:
    """Raise :class:`EngineMismatch` for the first use that the installed SGLang does not fit."""
    for use in uses:
        use.check()


def register(hooks: Sequence[Hook]) -> None:
    """Register the hooks with SGLang, which applies them when all plugins have loaded."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in hooks:
        HookRegistry.register(hook.target, hook.wrapper, HookType(hook.kind.value))


def _resolve(target: str) -> Any:
    try:
        return pkgutil.resolve_name(target)
    except (ImportError, AttributeError) as error:
        raise EngineMismatch(f"this SGLang has no {target}: {error}") from error


def _parameters(target: str) -> tuple[Parameter, ...]:
    return tuple(inspect.signature(_resolve(target)).parameters.values())


def _names(function: Sequence[Parameter]) -> str:
    return ", ".join(parameter.name for parameter in function) or "nothing"


def _misfit(wrapper: Sequence[Parameter], function: Sequence[Parameter], optional: frozenset[str]) -> str:
    """Why a hook with the parameters ``wrapper`` cannot stand where ``function`` is called. Empty when it can."""
    named = set()
    present = {parameter.name for parameter in function}
    for index, wanted in enumerate(wrapper):
        if wanted.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        if wanted.name in optional and wanted.name not in present:
            continue
        if wanted.kind is _BY_PLACE_OR_NAME:
            found = function[index] if index < len(function) else None
            is_self = index == 0 and found is not None and found.name == "self"
        else:
            found, is_self = next((parameter for parameter in function if parameter.name == wanted.name), None), False
        if found is None or found.kind is not wanted.kind or (found.name != wanted.name and not is_self):
            return f"the hook needs {wanted.name}"
        named.add(found.name)
    kinds = {parameter.kind for parameter in wrapper}
    for parameter in function:
        if parameter.name in named:
            continue
        if parameter.kind in _PASSED_BY_ARGS and Parameter.VAR_POSITIONAL not in kinds:
            return f"the hook does not know {parameter.name}"
        if parameter.kind in _PASSED_BY_KWARGS and Parameter.VAR_KEYWORD not in kinds:
            return f"the hook does not know {parameter.name}"
    return ""

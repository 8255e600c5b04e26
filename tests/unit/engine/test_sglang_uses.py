"""A hook or a call is refused exactly when SGLang's function no longer means what our code takes it to mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.errors import EngineMismatch
from aurora_runtime.sglang_uses import Call, Hook, HookKind, Name, check_all


class Engine:
    """Functions in place of SGLang's."""

    def bare(self, batch: Any) -> None: ...
    def grown(self, batch: Any, plan: Any = None) -> None: ...
    def grown_by_name(self, batch: Any, *, plan: Any = None) -> None: ...
    def renamed(self, requests: Any) -> None: ...
    def swapped(self, plan: Any, batch: Any) -> None: ...
    def needy(self, batch: Any, plan: Any) -> None: ...
    def hidden(self, *args: Any, **kwargs: Any) -> None: ...


def strict(original: Any, engine: Any, batch: Any) -> None: ...
def strict_with_plan(original: Any, engine: Any, batch: Any, *, plan: Any = None) -> None: ...
def lenient(original: Any, engine: Any, batch: Any, *args: Any, **kwargs: Any) -> None: ...
def lenient_by_name(original: Any, engine: Any, batch: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("wrapper", "function", "fault"),
    [
        (strict, "bare", ""),
        (strict, "grown", "does not know plan"),
        (strict, "grown_by_name", "does not know plan"),
        (strict, "renamed", "needs batch"),
        (strict, "hidden", "needs batch"),
        (lenient, "grown", ""),
        (lenient, "grown_by_name", ""),
        (lenient, "swapped", "needs batch"),
        (lenient_by_name, "grown_by_name", ""),
        (lenient_by_name, "grown", "does not know plan"),  # SGLang may pass it by place
        (strict_with_plan, "grown_by_name", ""),
        (strict_with_plan, "bare", "needs plan"),
        (strict_with_plan, "grown", "needs plan"),
    ],
)
def test_a_hook_fits_where_it_reads_what_it_names_and_passes_on_the_rest(
    wrapper: Callable[..., None], function: str, fault: str
) -> None:
    hook = Hook(f"{__name__}.Engine.{function}", wrapper, HookKind.AROUND)
    if not fault:
        hook.check()
        return
    with pytest.raises(EngineMismatch, match=f"{function} takes self.*, but the hook {fault}"):
        hook.check()


def test_an_optional_parameter_may_be_absent_but_not_elsewhere() -> None:
    optional = frozenset({"plan"})
    for function in ("bare", "grown_by_name"):
        Hook(f"{__name__}.Engine.{function}", strict_with_plan, HookKind.AROUND, optional).check()
    with pytest.raises(EngineMismatch):
        Hook(f"{__name__}.Engine.grown", strict_with_plan, HookKind.AROUND, optional).check()


def test_a_hook_before_a_function_has_no_argument_of_its_own() -> None:
    def before(engine: Any, batch: Any) -> None: ...

    target = f"{__name__}.Engine.bare"
    Hook(target, before, HookKind.BEFORE).check()
    for kind in (HookKind.AFTER, HookKind.AROUND):
        with pytest.raises(EngineMismatch):
            Hook(target, before, kind).check()


@pytest.mark.parametrize(
    ("places", "names", "function", "fits"),
    [
        (("self", "batch"), (), "bare", True),
        (("self", None), (), "renamed", True),
        (("self", "batch"), (), "renamed", False),
        (("self", "batch"), (), "grown", True),
        (("self", "batch"), ("plan",), "grown_by_name", True),
        (("self", "batch", "plan"), (), "grown_by_name", False),
        (("self", "batch"), ("plan",), "bare", False),
        (("self", "batch"), (), "needy", False),
        (("self",), ("plan", "batch"), "needy", True),
        (("self", "batch"), (), "swapped", False),
    ],
)
def test_a_call_fits_where_it_passes_all_that_is_needed_and_nothing_unknown(
    places: tuple[str | None, ...], names: tuple[str, ...], function: str, fits: bool
) -> None:
    call = Call(f"{__name__}.Engine.{function}", places, names)
    if fits:
        call.check()
    else:
        with pytest.raises(EngineMismatch, match=f"{function} takes .*, but we pass self"):
            call.check()


def test_a_missing_name_is_named() -> None:
    with pytest.raises(EngineMismatch, match=r"this SGLang has no json\.no_such_function"):
        check_all([Name("json.loads"), Name("json.no_such_function")])


@given(st.integers(0, 3), st.booleans(), st.sampled_from([strict, lenient, lenient_by_name]))
def test_an_accepted_hook_takes_every_call_that_its_function_takes(
    added: int, by_name_only: bool, wrapper: Callable[..., None]
) -> None:
    """The function has grown by parameters with defaults."""
    names = [f"p{number}" for number in range(added)]
    star = "*, " if by_name_only and names else ""
    space: dict[str, Any] = {}
    exec(f"def grown(self, batch, {star}{', '.join(f'{name}=0' for name in names)}): pass", space)  # noqa: S102
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "grown", space["grown"])
        try:
            Hook(f"{__name__}.Engine.grown", wrapper, HookKind.AROUND).check()
        except EngineMismatch:
            assert wrapper is not lenient
            assert names
            return
    wrapper(None, None, None, **dict.fromkeys(names))
    if not by_name_only:
        wrapper(None, None, None, *names)

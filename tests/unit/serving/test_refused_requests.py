"""Requests that could be traced against the client's wish are refused before SGLang's scheduler."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aurora_runtime.serving.protection import VALIDATE_FUNCTION, before_validation


def ask(**fields: Any) -> None:
    before_validation(object(), SimpleNamespace(**fields), [1])


def test_a_session_is_refused() -> None:
    refused: list[dict[str, Any]] = [{"id": []}, {"id": "a"}, {"rid": None}]
    for session in refused:
        with pytest.raises(ValueError, match="sessions are not served; send the whole conversation"):
            ask(sampling_params={}, session_params=session)
    ask(sampling_params={}, session_params=None)
    ask(sampling_params={}, session_params={})


@pytest.mark.parametrize(
    "wish",
    [
        False,
        "off",
        [],
        {"trcae": False},
        {"trace": "false"},
        {"trace": None},
        {"trace": 0},
        {"tag": ""},
        {"tag": 7},
        {"tag": None},
        {"tag": ["secret-name"]},
        {"tag": "secret-name" * 20},
        {"tag": "secret-name\ud800"},
        {"trace": True, "secret-name": 1},
    ],
)
def test_a_wish_about_traces_that_is_unclear_is_refused_and_not_shown(wish: Any) -> None:
    with pytest.raises(ValueError, match=r"^custom_params\.aurora") as refused:
        ask(sampling_params={"custom_params": {"aurora": wish}})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "sampling_params",
    [
        None,
        {},
        {"custom_params": None},
        {"custom_params": {"thinking_budget": 5}},
        {"custom_params": {"aurora": {}}},
        {"custom_params": {"aurora": {"trace": False, "tag": "tenant-7"}}},
    ],
)
def test_a_clear_wish_and_no_wish_pass(sampling_params: Any) -> None:
    ask(sampling_params=sampling_params)


def definitions(path: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions of the class that a dotted path names, by name. Reads the source, because the import is slow."""
    module, class_name = path.rsplit(".", 1)
    package = importlib.util.find_spec("sglang")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0], *module.split(".")[1:]).with_suffix(".py")
    found = next(n for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef) and n.name == class_name)
    return {one.name: one for one in found.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


def calls(function: ast.AST) -> list[str]:
    """The methods that a function calls, in the order of the source."""
    found = [n.func for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return [one.attr for one in sorted(found, key=lambda one: (one.lineno, one.col_offset))]


def test_every_way_to_sglangs_scheduler_leads_through_the_hooked_function() -> None:
    validating, checked = VALIDATE_FUNCTION.rsplit(".", 1)
    manager = definitions(validating)
    ways = [calls(one) for one in manager.values() if "_create_tokenized_object" in calls(one)]
    assert len(ways) == 2, "single prompts, and prompts that are tokenized together"
    assert all(way.index(checked) < way.index("_create_tokenized_object") for way in ways)

"""The house stays readable: functions and constructors keep within their sizes."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
MAX_FUNCTION_LINES: Final = 60
MAX_CONSTRUCTOR_PARAMETERS: Final = 8


def sources() -> tuple[Path, ...]:
    """Every Python file of the checkout, tracked or new."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return tuple(path for name in listed.stdout.splitlines() if (path := ROOT / name).exists())


def names(paths: list[str]) -> str:
    return "\n".join(sorted(paths))


def test_no_function_is_too_long_and_no_constructor_takes_too_much() -> None:
    long, wide = [], []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            place = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            if node.end_lineno is not None and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES:
                long.append(place)
            if node.name == "__init__":
                parameters = len(node.args.args) - 1 + len(node.args.kwonlyargs)
                if parameters > MAX_CONSTRUCTOR_PARAMETERS:
                    wide.append(place)
    assert not long, names(long)
    assert not wide, names(wide)

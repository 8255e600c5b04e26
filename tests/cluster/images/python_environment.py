"""Finds the files of a Python environment, by asking the environment's own interpreter."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.command import run

_PRINT_PATHS = """
import json, sys, sysconfig
paths = sysconfig.get_paths()
print(json.dumps([sys.path, sys.prefix, sys.base_prefix, paths["stdlib"], paths["platstdlib"], paths["purelib"]]))
"""


@dataclass(frozen=True)
class PythonEnvironment:
    """An interpreter and its libraries."""

    executable: Path
    """The path by which the interpreter is called, often a link."""
    prefix: Path
    base_prefix: Path
    stdlib: tuple[Path, ...]
    site: Path
    linked: tuple[Path, ...]
    """Directories that .pth files of the environment name: a checkout, or an environment that several share."""

    @property
    def is_venv(self) -> bool:
        return self.prefix != self.base_prefix

    def executable_chain(self) -> list[Path]:
        """The chain of links from `executable` to the program itself, which is the last entry."""
        chain = [self.executable]
        while chain[-1].is_symlink():
            target = chain[-1].parent / chain[-1].readlink()
            chain.append(Path(os.path.normpath(target)))
        return chain


def inspect_environment(python: Path) -> PythonEnvironment:
    """Inspect `python`: an interpreter, or the directory of a virtual environment."""
    executable = python / "bin" / "python" if python.is_dir() else python
    answer = json.loads(run(executable, "-I", "-c", _PRINT_PATHS))
    prefix, base, stdlib, platform, site = (Path(path) for path in answer[1:])
    libraries = tuple(dict.fromkeys(_in_base(path, prefix, base) for path in (stdlib, platform)))
    search_path = [path for path in map(Path, answer[0]) if path.is_dir() and prefix != base]
    own = (prefix, *libraries)
    linked = tuple(path for path in search_path if not any(path.is_relative_to(directory) for directory in own))
    return PythonEnvironment(executable.absolute(), prefix, base, libraries, site, linked)


def _in_base(path: Path, prefix: Path, base: Path) -> Path:
    """The library's directory below the base interpreter.

    The interpreter of a virtual environment reports the platform's part of the library below the environment, where no
    such directory exists.
    """
    return base / path.relative_to(prefix) if path.is_relative_to(prefix) else path

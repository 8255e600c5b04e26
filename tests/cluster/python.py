"""What a Python environment consists of on disk, asked of the environment's own interpreter."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.command import run

_QUESTION = """
import json, sys, sysconfig
paths = sysconfig.get_paths()
print(json.dumps([sys.path, sys.prefix, sys.base_prefix, paths["stdlib"], paths["platstdlib"], paths["purelib"]]))
"""


@dataclass(frozen=True)
class Python:
    """An interpreter and its libraries. `executable` is the path that it is called by, often a link."""

    executable: Path
    prefix: Path
    base_prefix: Path
    stdlib: tuple[Path, ...]
    site: Path
    linked: tuple[Path, ...]
    """Directories that the environment links to by .pth files: a checkout, or an environment that several share."""

    @property
    def is_venv(self) -> bool:
        return self.prefix != self.base_prefix

    def executables(self) -> list[Path]:
        """The chain of links from the name that it is called by to the program itself."""
        chain = [self.executable]
        while chain[-1].is_symlink():
            target = chain[-1].parent / chain[-1].readlink()
            chain.append(Path(os.path.normpath(target)))
        return chain


def inspect(python: Path) -> Python:
    """`python` is an interpreter, or the directory of a virtual environment."""
    executable = python / "bin" / "python" if python.is_dir() else python
    answer = json.loads(run(executable, "-I", "-c", _QUESTION))
    prefix, base, stdlib, platform, site = (Path(path) for path in answer[1:])
    libraries = tuple(dict.fromkeys(_of_base(path, prefix, base) for path in (stdlib, platform)))
    elsewhere = [path for path in map(Path, answer[0]) if path.is_dir() and prefix != base]
    own = (prefix, *libraries)
    linked = tuple(path for path in elsewhere if not any(path.is_relative_to(known) for known in own))
    return Python(executable.absolute(), prefix, base, libraries, site, linked)


def _of_base(path: Path, prefix: Path, base: Path) -> Path:
    """An interpreter places the platform's part of its library below the environment, where there is none."""
    return base / path.relative_to(prefix) if path.is_relative_to(prefix) else path

"""The licences of what the one file holds: Python and packages, as those licences ask for."""

from __future__ import annotations

import platform
import re
import sysconfig
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

_NOTICE: Final = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|AUTHORS)[^/]*", re.IGNORECASE)


def notices() -> str:
    """The licence of this Python and the licence files of every package in this environment, by the packages' names."""
    python = Path(sysconfig.get_path("stdlib"), "LICENSE.txt").read_text(encoding="utf-8")
    packages = sorted((_notices_of(one) for one in distributions()), key=str.lower)
    return "\n".join((_notice(f"Python {platform.python_version()}", [python]), *packages))


def _notices_of(package: Distribution) -> str:
    files = (file for file in package.files or () if ".dist-info" in str(file) and _NOTICE.fullmatch(file.name))
    texts = [file.read_text(encoding="utf-8") for file in sorted(files)]
    return _notice(f"{package.metadata['Name']} {package.version}", texts)


def _notice(title: str, texts: Iterable[str]) -> str:
    return "\n\n".join((f"{title}\n{'=' * len(title)}", *(text.strip() for text in texts))) + "\n"

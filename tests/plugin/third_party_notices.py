"""The licences of the packages that the one file holds, as those licences ask for."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distributions
from typing import Final

_NOTICE: Final = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|AUTHORS)[^/]*", re.IGNORECASE)


def notices() -> str:
    """The licence files of every package in this environment, by the packages' names."""
    return "\n".join(sorted((_notices_of(one) for one in distributions()), key=str.lower))


def _notices_of(package: Distribution) -> str:
    files = (file for file in package.files or () if ".dist-info" in str(file) and _NOTICE.fullmatch(file.name))
    texts = (file.read_text(encoding="utf-8").strip() for file in sorted(files))
    title = f"{package.metadata['Name']} {package.version}"
    return "\n\n".join((f"{title}\n{'=' * len(title)}", *texts)) + "\n"

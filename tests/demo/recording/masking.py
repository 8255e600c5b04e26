"""Takes out of a recording what tells about the machine and its user: paths, names and secrets.

A path inside the checkout becomes relative to the checkout. Another absolute path becomes `…`, with its last part if
that is a file's name. Invariant: no text becomes longer, so a line that fitted the terminal still fits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MIN_NAME_CHARACTERS, MIN_SECRET_CHARACTERS = 3, 8
"""Shorter names and values are part of common words."""
COMMON_NAMES = frozenset({"root", "localhost"})
"""Names that most machines have."""
_CONTROL = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z])")
_PATH = re.compile(r"(?<![\w.…/:~-])/[\w.@+%~-]+(?:/[\w.@+%~-]+)*/?")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True)
class Mask:
    """What is masked.

    Attributes:
        checkout: the root of the checkout.
        names: names of the user and of the machine.
        secrets: values that nobody may read.
    """

    checkout: Path
    names: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()

    @classmethod
    def of_machine(cls, checkout: Path, user: str, host: str, environment: Mapping[str, str]) -> Mask:
        """The mask for recordings of this machine."""
        names = {user, host, host.partition(".")[0]} - COMMON_NAMES
        secrets = {
            value
            for name, value in environment.items()
            if _SECRET_NAME.search(name) and len(value) >= MIN_SECRET_CHARACTERS
        }
        return cls(
            checkout,
            tuple(sorted((name for name in names if len(name) >= MIN_NAME_CHARACTERS), key=len, reverse=True)),
            tuple(sorted(secrets, key=len, reverse=True)),
        )

    def apply(self, text: str) -> str:
        """The text without what is masked. Control sequences of the terminal stay."""
        return "".join(part if _CONTROL.fullmatch(part) else self._apply(part) for part in _CONTROL.split(text))

    def _apply(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "…")
        text = _PATH.sub(lambda match: self._masked_path(match[0]), text)
        for name in self.names:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", text)
        return text

    def _masked_path(self, text: str) -> str:
        path = PurePosixPath(text)
        if path.is_relative_to(self.checkout):
            return str(path.relative_to(self.checkout))
        return f"…/{path.name}" if path.suffix and len(path.parts) > 2 else "…"

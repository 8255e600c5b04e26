"""Takes out of a recording what tells about the machine and its user: paths, names and secrets.

These are masked, whatever stands before them:

- paths in the checkout, which become relative to it, and paths in the home and the folder for temporary files;
- the names of the user and of the host as whole words, unless they are common or shorter than three characters;
- values of at least eight characters of variables whose names say that they are secret;
- user and password in a URL.

Another absolute path is masked where it begins a word, or follows a character that no path has, `://` or an option of
one letter. A path outside the checkout becomes `…`, with its last part if that is a file's name. Paths that the project
chose, such as `/healthz`, stay.

Nothing else is masked: no other names, hosts or secrets, nothing that control sequences or line ends divide, and no
rest of a path after a character that few paths have, such as a space. Invariant: no text becomes longer, so a line that
fitted the terminal still fits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.rig.small_speculator import MODEL_PATH

MIN_NAME_CHARACTERS, MIN_SECRET_CHARACTERS = 3, 8
"""Shorter names and values are part of common words."""
COMMON_NAMES = frozenset({"root", "localhost"})
"""Names that most machines have."""
_CONTROL = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z])")
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_URL_USER = re.compile(r"(?<=//)[^/\s]+(?=@)")
_FILE_HOST = re.compile(r"(?<=file://)[\w.-]+(?=/)")
"""The host of a file's URL. Without it the path follows `://`."""
_PROJECT_PATH = re.compile(
    rf"(?:{re.escape(MODEL_PATH)}|/v1|/apis?)(?:/.*)?|/(?:healthz?|readyz|livez|metrics|generate)"
)
"""The model in a container, and paths of URLs of the engine, the agent, the operator and Kubernetes."""
_PART = r"[\w.@+%~-]+"
_BEGINNING = r"(?:(?<![\w.…/~])|(?<=(?<![\w-])-[A-Za-z])|(?<=://))"
_CELL_END = re.compile(r"(?<=\S)(?=  )")


@dataclass(frozen=True)
class Mask:
    """The texts to mask.

    Attributes:
        checkout: the root of the checkout.
        folders: other folders whose paths are masked whatever stands before them.
        names: names of the user and of the machine.
        secrets: values that nobody may read.
    """

    checkout: Path
    folders: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    _path: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        texts = sorted({str(folder) for folder in (self.checkout, *self.folders)}, key=len, reverse=True)
        known = "|".join(re.escape(text) for text in texts)
        path = rf"(?:(?:{known})(?![\w@+%~-]|\.\w)|{_BEGINNING}/{_PART})(?:/+{_PART})*/*(?<!\.)"
        object.__setattr__(self, "_path", re.compile(path))

    @classmethod
    def of_machine(
        cls, checkout: Path, folders: tuple[Path, ...], user: str, host: str, environment: Mapping[str, str]
    ) -> Mask:
        """The mask for recordings of this machine."""
        names = {user, host, host.partition(".")[0]} - COMMON_NAMES
        secrets = {
            value
            for name, value in environment.items()
            if _SECRET_NAME.search(name) and len(value) >= MIN_SECRET_CHARACTERS
        }
        return cls(
            checkout,
            tuple(folder for folder in folders if folder.is_absolute() and folder != Path("/")),
            tuple(sorted((name for name in names if len(name) >= MIN_NAME_CHARACTERS), key=len, reverse=True)),
            tuple(sorted(secrets, key=len, reverse=True)),
        )

    def apply(self, text: str) -> str:
        """The text without what is masked. Control sequences of the terminal stay."""
        parts = _CONTROL.split(text)
        return "".join(part if _CONTROL.fullmatch(part) else self._with_columns(part) for part in parts)

    def _with_columns(self, text: str) -> str:
        """The masked text. What stands before the gap between two columns gets spaces, so that the columns stay."""
        *cells, last = _CELL_END.split(text)
        return "".join([*(self._masked(cell).ljust(len(cell)) for cell in cells), self._masked(last)])

    def _masked(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "…")
        text = _FILE_HOST.sub("", _URL_USER.sub("…", text))
        text = self._path.sub(lambda match: self._masked_path(match[0]), text)
        for name in self.names:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", text)
        return text

    def _masked_path(self, text: str) -> str:
        path = PurePosixPath(text)
        if path.is_relative_to(self.checkout):
            return str(path.relative_to(self.checkout))
        if _PROJECT_PATH.fullmatch(text) and not any(str(folder) in text for folder in (self.checkout, *self.folders)):
            return text
        return f"…/{path.name}" if path.suffix and len(path.parts) > 2 else "…"

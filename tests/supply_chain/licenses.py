"""Which licence a package has, and whether an image may hold it.

Packages name their licence in four ways: an SPDX expression, a phrase, the licence's whole text, or a classifier. The
policy (``requirements/licenses.toml``) says what phrases and classifiers mean, states the licences of packages that
name none, and lists the licences that each image may hold.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.utils import canonicalize_name

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Policy:
    """``allowed``: the licences of each image. ``phrases`` and ``stated`` map a phrase or a package to SPDX."""

    allowed: Mapping[str, frozenset[str]]
    phrases: Mapping[str, str]
    stated: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ValueError when a package of the policy is not named as lock files name it."""
        value = tomllib.loads(path.read_text())
        for name in value["packages"]:
            if canonicalize_name(name) != name:
                raise ValueError(f"{path.name}: write {canonicalize_name(name)} instead of {name}")
        everywhere = frozenset(value["allowed"]["everywhere"])
        allowed = {image: everywhere | frozenset(value["allowed"].get(image, ())) for image in value["images"]}
        return cls(allowed, value["phrases"], value["packages"])

    def license_of(self, metadata: Mapping[str, Any]) -> str:
        """The SPDX expression of a package's licence, or :data:`UNKNOWN`. ``metadata`` is as in pip's report."""
        stated = self.stated.get(canonicalize_name(str(metadata["name"])))
        if stated is not None:
            return stated
        lines = str(metadata.get("license_expression") or metadata.get("license") or "").strip().splitlines()
        said = self._expression(lines[0].strip()) if lines else None
        if said is not None:
            return said
        names = [c.rsplit(" :: ", 1)[-1] for c in metadata.get("classifier", ()) if c.startswith("License :: ")]
        return (self._expression(names[0]) or UNKNOWN) if len(names) == 1 else UNKNOWN

    def _expression(self, said: str) -> str | None:
        if said in self.phrases:
            return self.phrases[said]
        try:
            return str(canonicalize_license_expression(said))
        except InvalidLicenseExpression:
            return None

    def allows(self, image: str, expression: str) -> bool:
        """Whether ``image`` may hold a package with this licence: all parts of an AND, one of an OR."""
        if expression == UNKNOWN:
            return False
        return _Evaluation(expression, self.allowed[image]).value


class _Evaluation:
    """Evaluates a canonical SPDX expression. AND binds stronger than OR."""

    def __init__(self, expression: str, allowed: frozenset[str]) -> None:
        spaced = re.sub(r"([()])", r" \1 ", expression)
        self._tokens = re.sub(r" WITH ", "_WITH_", spaced).split()
        self._allowed = allowed
        self.value = self._any()

    def _any(self) -> bool:
        values = [self._all()]
        while self._next("OR"):
            values.append(self._all())
        return any(values)

    def _all(self) -> bool:
        values = [self._one()]
        while self._next("AND"):
            values.append(self._one())
        return all(values)

    def _one(self) -> bool:
        if self._next("("):
            value = self._any()
            self._tokens.pop(0)
            return value
        return self._tokens.pop(0).replace("_WITH_", " WITH ") in self._allowed

    def _next(self, token: str) -> bool:
        if self._tokens[:1] != [token]:
            return False
        self._tokens.pop(0)
        return True

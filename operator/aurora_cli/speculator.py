"""One AuroraSpeculator as the API server returned it, read leniently. Pure.

Why: the program and the operator of a cluster may have different versions. Fields that this version does not know are
ignored, and a spec that it cannot read does not keep a person from pausing a roll.

Invariant: nothing here changes the object.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from aurora_api.v1alpha1.annotations import ABORT_ANNOTATION, annotated_version
from aurora_api.v1alpha1.conditions import Condition, ConditionType
from aurora_api.v1alpha1.status import NO_STATUS, RolloutPhase, SpeculatorStatus
from aurora_cli.errors import Unreadable

M = TypeVar("M", bound=BaseModel)
_INSTALLATION: Final = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)/([a-z0-9][a-z0-9.-]{0,252})", re.ASCII)
"""``status.operator.installation``: namespace and name of a Lease. The API server does not check it."""


@dataclass(frozen=True)
class Speculator:
    """The object and its parsed status."""

    raw: Mapping[str, Any]
    status: SpeculatorStatus
    """Empty while the operator has not written one: see ``has_status``."""
    fault: str = ""
    """Why the status cannot be read; ``status`` is then empty."""

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Speculator:
        """Raises :class:`Unreadable` when the status does not satisfy the model of this version."""
        return cls(raw, _parsed(SpeculatorStatus, raw.get("status") or {}, f"{_full_name(raw)}: status"))

    @classmethod
    def of_any(cls, raw: Mapping[str, Any]) -> Speculator:
        """As :meth:`of`, for one of many: a status that cannot be read is a ``fault`` and hides no other speculator."""
        try:
            return cls.of(raw)
        except Unreadable as error:
            return cls(raw, SpeculatorStatus(), str(error))

    @property
    def metadata(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.raw["metadata"]
        return found

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    @property
    def namespace(self) -> str:
        return str(self.metadata["namespace"])

    @property
    def uid(self) -> str:
        return str(self.metadata.get("uid", ""))

    @property
    def generation(self) -> int:
        return int(self.metadata.get("generation", 0))

    @property
    def annotations(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.metadata.get("annotations") or {}
        return found

    @property
    def has_status(self) -> bool:
        """Whether an operator has acted on the speculator."""
        return bool(self.raw.get("status", NO_STATUS) != NO_STATUS)

    @property
    def created(self) -> datetime | None:
        return self._time("creationTimestamp")

    @property
    def deleted(self) -> datetime | None:
        """When a person deleted the speculator. The operator deletes stored data before the object goes."""
        return self._time("deletionTimestamp")

    def _time(self, field: str) -> datetime | None:
        text = self.metadata.get(field)
        return datetime.fromisoformat(text) if isinstance(text, str) else None

    @property
    def paused(self) -> bool:
        return bool(self.section("rollout").get("paused", False))

    @property
    def pin(self) -> int | None:
        pin = self.section("rollout").get("pin")
        return pin if isinstance(pin, int) else None

    @property
    def aborted(self) -> int | None:
        """The version that a person rejects."""
        return annotated_version(self.annotations.get(ABORT_ANNOTATION, ""))

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the spec; empty when it is not set."""
        found = (self.raw.get("spec") or {}).get(name)
        return found if isinstance(found, Mapping) else {}

    @property
    def rolling(self) -> int | None:
        """The version of the roll under way, its watch after the promotion included."""
        return None if self.status.rollout.phase is RolloutPhase.IDLE else self.status.rollout.version

    @property
    def active(self) -> int | None:
        return None if self.status.active is None else self.status.active.version

    @property
    def operator_lease(self) -> tuple[str, str] | None:
        """Namespace and name of the Lease whose holder acts on the speculator, if the status names it."""
        operator = self.status.operator
        named = _INSTALLATION.fullmatch(operator.installation) if operator is not None else None
        return (named[1], named[3]) if named else None

    def has_expired(self, version: int) -> bool:
        """Whether the store no longer keeps the weights of a version that it once had."""
        kept = self.status.kept_versions
        serving = (self.active, self.status.previous.version if self.status.previous else None)
        return bool(kept) and min(kept) < version < max(kept) and version not in {*kept, *serving}

    def condition(self, type_: ConditionType) -> Condition | None:
        """The condition of this type, if the operator has set it."""
        return next((condition for condition in self.status.conditions if condition.type == type_), None)

    def open_versions(self) -> Iterator[int]:
        """Versions that a decision can still be about: the active one, the candidates, and the one being rolled out."""
        candidate = self.status.candidate
        if self.active is not None:
            yield self.active
        if candidate is not None:
            yield candidate.version
        if self.rolling is not None:
            yield self.rolling

    def parsed_section(self, name: str, model: type[M]) -> M:
        """A section of the spec with its defaults. Raises :class:`Unreadable`."""
        return _parsed(model, self.section(name), f"{_full_name(self.raw)}: spec.{name}")


def _full_name(raw: Mapping[str, Any]) -> str:
    return f"{raw['metadata'].get('namespace', '')}/{raw['metadata'].get('name', '')}"


def _parsed(model: type[M], value: Mapping[str, Any], place: str) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise Unreadable(
            f"{place}: {field}: {first['msg']}; the cluster's operator has another version, so update kubectl-aurora"
        ) from None

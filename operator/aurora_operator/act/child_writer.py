"""Applies the children, creates the keys and the Jobs, and leaves other owners' objects alone.

This module decides whether to apply. Field manager and options of server-side apply are in ``kubernetes_api``.

Invariant: an object that exists under a child's name without an owner reference to this speculator is never changed.
Its name is reported instead, and the child is created once the name is free. Names that every namespace uses, such as
the ServiceAccount ``default``, are therefore safe.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aurora_operator.children.owner import Owner
from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.kubernetes_api import KubernetesApi, Object, resource_of
from aurora_operator.observe.observed import RefusedJob

log = logging.getLogger(__name__)

UNAVAILABLE_STATUSES = frozenset({0, 401, 429, 502, 503, 504})
"""HTTP statuses that mean "the API server cannot answer now" (0: no connection).

500 is not among them: the API server answers 500 to a template that has a number where text belongs.
"""
MAX_ERROR_CHARACTERS = 1000
"""Length of an error that the status repeats. A webhook may return more than a condition can hold."""


@dataclass(frozen=True)
class WriteResult:
    """The objects that could not be written."""

    errors: tuple[str, ...] = ()
    """Objects that the API server refused, each with its reason."""
    name_taken: tuple[str, ...] = ()
    """Objects whose name belongs to another owner's object, as ``<Kind> <name>``."""
    refused: RefusedJob | None = None


class ChildWriter:
    """Writes the children of one speculator.

    The writer remembers each applied child, so an unchanged child costs no call.
    """

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api
        self._applied: dict[tuple[str, str], tuple[str, Any]] = {}

    async def write(
        self, owner: Owner, keys: Object | None, children: Sequence[Object], existing: Mapping[tuple[str, str], Object]
    ) -> WriteResult:
        """Create the Secret ``keys`` unless it exists, then apply ``children``. ``existing`` holds our children so far.

        Raises :class:`KubernetesError` when the API server is unavailable, or refuses to read an object.
        """
        errors, name_taken = list[str](), list[str]()
        if keys is not None and not await self._create_keys(owner, keys):
            name_taken.append(_title(keys))
        for child in children:
            current = existing.get(_key(child))
            if current is None and await self._is_taken(owner, child):
                name_taken.append(_title(child))
            elif error := await self._apply(child, current):
                errors.append(error)
        return WriteResult(tuple(errors), tuple(name_taken))

    async def create_job(self, owner: Owner, job: Object | None) -> WriteResult:
        """Create a validation Job, if there is one to create.

        A refusal concerns only the measurement: the candidate waits, and pods serve as before.
        """
        if job is None:
            return WriteResult()
        try:
            await asyncio.to_thread(self._api.create, job)
        except Conflict:
            taken = await self._is_taken(owner, job)
            return WriteResult(name_taken=(_title(job),) if taken else ())
        except KubernetesError as error:
            if error.status in UNAVAILABLE_STATUSES:
                return WriteResult(errors=(error_text(job, error),))
            return WriteResult(refused=RefusedJob(job["metadata"]["name"], str(error)[:MAX_ERROR_CHARACTERS]))
        return WriteResult()

    async def _create_keys(self, owner: Owner, keys: Object) -> bool:
        """Create the Secret with the generated keys. False when its name is taken."""
        try:
            await asyncio.to_thread(self._api.create, keys)
        except Conflict:
            return not await self._is_taken(owner, keys)
        except KubernetesError as error:
            log.warning("%s: the Secret with the keys was not created: %s", owner.full_name, error_text(keys, error))
        return True

    async def _is_taken(self, owner: Owner, child: Object) -> bool:
        """Whether an object of another owner has the name of ``child``."""
        metadata = child["metadata"]
        try:
            found = await asyncio.to_thread(self._api.get, resource_of(child), metadata["namespace"], metadata["name"])
        except NotFound:
            return False
        return not owner.owns(found)

    async def _apply(self, child: Object, existing: Object | None) -> str:
        """Apply ``child`` unless nobody changed it since our last apply.

        Returns the API server's refusal, or an empty string.
        """
        key = _key(child)
        digest = hashlib.sha256(json.dumps(child, sort_keys=True).encode()).hexdigest()
        if existing is not None and self._applied.get(key) == (digest, _revision(existing)):
            return ""
        try:
            applied = await asyncio.to_thread(self._api.apply, child)
        except KubernetesError as error:
            if error.status in UNAVAILABLE_STATUSES:
                raise
            return error_text(child, error)
        self._applied[key] = (digest, _revision(applied))
        return ""


def error_text(obj: Object, error: KubernetesError) -> str:
    """The API server's refusal of ``obj``, with the object's kind and name."""
    return f"{_title(obj)}: {error}"[:MAX_ERROR_CHARACTERS]


def _key(obj: Object) -> tuple[str, str]:
    return obj["kind"], obj["metadata"]["name"]


def _title(obj: Object) -> str:
    return f"{obj['kind']} {obj['metadata']['name']}"


def _revision(obj: Object) -> Any:
    """A value that changes whenever somebody changes a field that we applied.

    The value is the uid with the generation, or with the resourceVersion for kinds without a generation.
    """
    metadata = obj["metadata"]
    return (metadata["uid"], metadata.get("generation") or metadata["resourceVersion"])

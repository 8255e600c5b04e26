"""Creates and applies a speculator's children. Never raises for one child that the API server refuses.

Invariants:

- Only our own objects are written. An object of another owner that has a child's name is left alone and named. Every
  apply carries the uid and the resourceVersion of the object that was observed. So the API server refuses an apply that
  arrives late, or that would reach an object which is not ours any more. Then the speculator is observed again.
- An object without a controller that has the labels of our child is taken over when a person asks for it with the
  annotation ``aurora.dev/adopt``: ``kubectl delete --cascade=orphan`` leaves such objects, and backup tools bring them.
- A child is written only when something differs. A restarted operator therefore writes nothing at rest.
- Secrets and Jobs are created once and never changed. A disruption budget that is not wanted any more is deleted.
- While a Secret with keys or a ServiceAccount is not ours, no Deployment is written: its pods would use what is not
  ours.

Known limit: a foreign object that appears with a child's name in the milliseconds between the look and the first apply
is adopted.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

from aurora_operator.children.metadata import Owner
from aurora_operator.errors import UNAVAILABLE_STATUSES, Conflict, KubernetesError
from aurora_operator.kubernetes_api import (
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    JOB,
    SERVICE_ACCOUNT,
    KubernetesApi,
    Object,
    resource_of,
)
from aurora_operator.observe.observed import RefusedJob
from aurora_store.errors import bounded_text

log = logging.getLogger(__name__)

ChildKey = tuple[str, str]
"""Kind and name."""
DIGEST_ANNOTATION: Final = "aurora.dev/written"
"""Annotation of a child: the digest of the object that we wrote last."""
_QUANTITIES = ("limits", "requests")
"""Fields whose values Kubernetes may spell in another way: 1 as "1", "1000m" as "1"."""


class NameTakenError(Exception):
    """An object of another owner has the child's name."""


@dataclass(frozen=True)
class WriteResult:
    """What could not be written."""

    errors: tuple[str, ...] = ()
    name_taken: tuple[str, ...] = ()
    """Children whose name an object of another owner has, as ``<Kind> <name>``."""
    refused: RefusedJob | None = None
    workloads_held: bool = False
    """No Deployment was written, and no Job may be: their pods would use what is not ours."""


class ChildWriter:
    """Writes the children of one speculator."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api

    async def write(
        self, owner: Owner, keys: Sequence[Object], children: Sequence[Object], existing: Mapping[ChildKey, Object]
    ) -> WriteResult:
        """Create each Secret of ``keys`` unless it exists, then write ``children``.

        Args:
            existing: our children so far.

        Raises :class:`Conflict` when somebody else wrote a child meanwhile, and :class:`KubernetesError` when the API
        server is unavailable. A refusal is in the result, and the other children are written all the same.
        """
        errors, name_taken, held = list[str](), list[str](), False
        for child in (*keys, *children):
            if held and child["kind"] == DEPLOYMENT.kind:
                continue
            # The Secrets and the ServiceAccount come before the workloads that use them.
            is_used = child in keys or child["kind"] == SERVICE_ACCOUNT.kind
            try:
                if child in keys:
                    await self._create_once(owner, child)
                else:
                    await self._apply(owner, child, existing.get(_key(child)))
            except NameTakenError:
                name_taken.append(title(child))
                held = held or is_used
            except KubernetesError as error:
                errors.append(_refusal(child, error))
                held = held or child in keys
        if children:
            wanted = {_key(child) for child in children}
            budgets = [obj for obj in existing.values() if obj["kind"] == DISRUPTION_BUDGET.kind]
            errors += await self._delete(obj for obj in budgets if _key(obj) not in wanted)
        return WriteResult(tuple(errors), tuple(name_taken), workloads_held=held)

    async def scale(self, owner: Owner, replicas: int, existing: Mapping[ChildKey, Object]) -> tuple[str, ...]:
        """Set the replicas of the inference Deployment, and nothing else of it.

        Returns the refusal, if any. Raises :class:`KubernetesError` when the API server is unavailable.
        """
        live = existing.get((DEPLOYMENT.kind, owner.name))
        if live is None or live["spec"].get("replicas") == replicas:
            return ()
        try:
            await self._api.patch(live, {"spec": {"replicas": replicas}})
        except KubernetesError as error:
            return (_refusal(live, error),)
        return ()

    async def write_jobs(
        self, owner: Owner, obsolete: Sequence[str], job: Object | None, existing: Mapping[ChildKey, Object]
    ) -> WriteResult:
        """Delete the ``obsolete`` Jobs, then create the validation Job ``job``, if there is one to create.

        While an obsolete Job is not deleted, ``job`` is not created, because measurements run one at a time. A refusal
        concerns only the measurement: the candidate waits, and pods serve as before.

        Raises :class:`KubernetesError` when the API server is unavailable.
        """
        errors = await self._delete(filter(None, (existing.get((JOB.kind, name)) for name in obsolete)))
        if errors:
            return WriteResult(tuple(errors))
        return WriteResult() if job is None else await self._create_job(owner, job)

    async def _delete(self, objects: Iterable[Object]) -> list[str]:
        """Delete our ``objects``. Returns the refusals. Raises :class:`KubernetesError`."""
        errors = list[str]()
        for old in objects:
            try:
                await self._api.delete(old)
            except Conflict:  # the name belongs to another object by now
                continue
            except KubernetesError as error:
                errors.append(_refusal(old, error))
        return errors

    async def _create_job(self, owner: Owner, job: Object) -> WriteResult:
        try:
            await self._create_once(owner, job)
        except NameTakenError:
            return WriteResult(name_taken=(title(job),))
        except KubernetesError as error:
            return WriteResult(refused=RefusedJob(job["metadata"]["name"], _refusal(job, error)))
        return WriteResult()

    async def _create_once(self, owner: Owner, obj: Object) -> None:
        """Create ``obj`` unless it exists. Raises :class:`NameTakenError` and :class:`KubernetesError`."""
        try:
            await self._api.create(obj)
        except Conflict:
            found = await self._find(obj)
            if found is None:
                raise
            if not owner.owns(found):
                raise NameTakenError from None

    async def _apply(self, owner: Owner, child: Object, live: Object | None) -> None:
        """Create or change ``child``. Raises :class:`NameTakenError` and :class:`KubernetesError`."""
        child = with_digest(child)
        # The observation finds objects by our labels, which a foreign object, or one that a user changed, may lack.
        live = live or await self._find(child)
        if live is None:
            await self._api.apply(child)
        elif not owner.owns(live) and not may_adopt(owner, child, live):
            raise NameTakenError
        elif not is_unchanged(child, live):
            fence = {key: live["metadata"][key] for key in ("uid", "resourceVersion")}
            await self._api.apply({**child, "metadata": {**child["metadata"], **fence}})

    async def _find(self, obj: Object) -> Object | None:
        return await self._api.find(resource_of(obj), obj["metadata"]["namespace"], obj["metadata"]["name"])


def may_adopt(owner: Owner, child: Object, live: Object) -> bool:
    """Whether ``live`` is a former life's ``child``, and a person made ``owner`` the successor."""
    metadata = live["metadata"]
    is_controlled = any(reference.get("controller") for reference in metadata.get("ownerReferences") or ())
    return owner.adopts and not is_controlled and _contains(metadata.get("labels"), child["metadata"]["labels"])


def with_digest(child: Object) -> Object:
    """``child`` with the digest of its content."""
    digest = hashlib.sha256(json.dumps(child, sort_keys=True).encode()).hexdigest()[:16]
    annotations = {**(child["metadata"].get("annotations") or {}), DIGEST_ANNOTATION: digest}
    return {**child, "metadata": {**child["metadata"], "annotations": annotations}}


def is_unchanged(child: Object, live: Object) -> bool:
    """Whether ``live`` is what the API server made of ``child``, which has its digest.

    The digest shows that we left out no field that we wrote before. The fields show that nobody changed a value.
    """
    return _contains(live, child)


def _contains(live: Any, wanted: Any) -> bool:
    """Whether ``live`` has every field of ``wanted``. The API server adds defaults to objects, and none to lists."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            key in live and (_same_quantities if key in _QUANTITIES else _contains)(live[key], value)
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        same_length = isinstance(live, list) and len(live) == len(wanted)
        return same_length and all(map(_contains, live, wanted))
    return bool(live == wanted)


def _same_quantities(live: Any, wanted: Any) -> bool:
    """Whether two maps from resource to quantity mean the same: ``{"nvidia.com/gpu": 1}`` and ``"1"``."""
    if not isinstance(live, dict) or not isinstance(wanted, dict):
        return _contains(live, wanted)
    return live.keys() == wanted.keys() and all(_quantity(live[name]) == _quantity(wanted[name]) for name in wanted)


def _quantity(value: object) -> Decimal | str:
    try:
        return Decimal(parse_quantity(str(value)))
    except ValueError:
        return str(value)


def title(obj: Object) -> str:
    """``<Kind> <name>``, as the status names an object."""
    return f"{obj['kind']} {obj['metadata']['name']}"


def _refusal(obj: Object, error: KubernetesError) -> str:
    """The API server's refusal of ``obj``. Raises ``error`` when somebody else wrote first, or nobody refused."""
    if isinstance(error, Conflict) or error.status in UNAVAILABLE_STATUSES:
        raise error
    return bounded_text(f"{title(obj)}: {error}")


def _key(obj: Object) -> ChildKey:
    return obj["kind"], obj["metadata"]["name"]

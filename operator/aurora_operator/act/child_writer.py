"""Creates and applies the children, creates the keys and the Jobs, and leaves other owners' objects alone.

This module decides whether to write. Field manager and options of server-side apply are in ``kubernetes_api``.

Invariant: an object that this speculator does not control is never changed. Its name is reported instead, and the child
is created once the name is free. No other writer can slip in between a look and a write: the first write of a child is
a create call, which fails when the name is taken. Every later write is fenced (``child_apply``).

A conflict (HTTP 409) that no other writer explains is a refusal like any other: an admission webhook may deny with 409.
It must not end the reconcile, which would neither roll back a version nor report the refusal.

Workloads are held while a Secret with keys could not be created, or while the ServiceAccount is another owner's. Their
pods would otherwise run with that owner's keys and identity.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aurora_operator.act.child_apply import apply_over, find, refused, revision_of_spec, title
from aurora_operator.act.refused_writes import NameTakenError, RefusedWrites
from aurora_operator.act.unchanged_child import DIGEST_ANNOTATION, is_unchanged, with_digest
from aurora_operator.children.owner import Owner
from aurora_operator.errors import UNAVAILABLE_STATUSES, Conflict, KubernetesError
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import DEPLOYMENT, JOB, SERVICE_ACCOUNT, KubernetesApi, Object
from aurora_operator.observe.observed import RefusedJob
from aurora_store.errors import bounded_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WriteResult:
    """The objects that could not be written."""

    errors: tuple[str, ...] = ()
    """Objects that the API server refused, each with its reason."""
    name_taken: tuple[str, ...] = ()
    """Objects whose name belongs to another owner's object, as ``<Kind> <name>``."""
    refused: RefusedJob | None = None
    job_waits: bool = False
    """No Job may be created, because an obsolete one is not deleted."""
    workloads_held: bool = False
    """No Deployment was written, and no Job may be: their pods would use what is not ours."""


class ChildWriter:
    """Writes the children of one speculator.

    The writer remembers each child as written, so an unchanged child costs no call. After a restart the child itself
    shows that it is unchanged. A refused child is tried again after growing delays.
    """

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api
        self.refused = RefusedWrites()
        self._written: dict[tuple[str, str], tuple[str, Any]] = {}

    async def write(
        self,
        owner: Owner,
        keys: Sequence[Object],
        children: Sequence[Object],
        existing: Mapping[tuple[str, str], Object],
    ) -> WriteResult:
        """Create each Secret of ``keys`` unless it exists, then write ``children``.

        The result names the Secrets that could not be created and the children that the API server refused. The other
        objects are written all the same, except workloads that must be held.

        Args:
            existing: our children so far.

        Raises :class:`Conflict` when somebody else wrote a child meanwhile, and :class:`KubernetesError` when the API
        server is unavailable while a child is written.
        """
        errors, name_taken = list[str](), list[str]()
        self.refused.keep_only({_key(child) for child in (*keys, *children)})
        for secret in keys:
            try:
                await self.refused.attempt(_key(secret), None, partial(self._create_keys, owner, secret))
            except NameTakenError:
                name_taken.append(title(secret))
            except KubernetesError as error:
                log.warning("%s: a Secret with keys was not created: %s", owner.full_name, error_text(secret, error))
                errors.append(error_text(secret, error))
        held = bool(errors or name_taken)
        for child in children:
            if held and child["kind"] == DEPLOYMENT.kind:
                self.refused.forget(_key(child))
                continue
            try:
                await self._write(owner, child, existing.get(_key(child)))
            except NameTakenError:
                name_taken.append(title(child))
                held = held or child["kind"] == SERVICE_ACCOUNT.kind  # comes before the workloads
            except Conflict:
                raise
            except KubernetesError as error:
                if error.status in UNAVAILABLE_STATUSES:
                    raise
                errors.append(error_text(child, error))
        return WriteResult(tuple(errors), tuple(name_taken), workloads_held=held)

    async def write_jobs(
        self, owner: Owner, obsolete: Sequence[str], job: Object | None, existing: Mapping[tuple[str, str], Object]
    ) -> WriteResult:
        """Delete the ``obsolete`` Jobs, then create the validation Job ``job``, if there is one to create.

        While an obsolete Job is not deleted, ``job`` is not created, because measurements run one at a time. The next
        reconcile tries both again. A failure does not stop the rest of the plan.

        Args:
            existing: our children so far.
        """
        job_waits, errors = False, list[str]()
        for name in obsolete:
            old = existing.get((JOB.kind, name))
            if old is None:
                continue
            try:
                await call_api(self._api.delete, JOB, owner.namespace, name, old["metadata"]["uid"])
            except Conflict:  # the name belongs to another object by now
                continue
            except KubernetesError as error:
                job_waits = True
                errors += _job_errors(owner, old, error)
        if job_waits:
            return WriteResult(tuple(errors), job_waits=True)
        return WriteResult() if job is None else await self._create_job(owner, job)

    async def _create_job(self, owner: Owner, job: Object) -> WriteResult:
        """Create ``job``. A refusal concerns only the measurement: the candidate waits, and pods serve as before."""
        try:
            await call_api(self._api.create, job)
        except KubernetesError as error:
            return await self._job_not_created(owner, job, error)
        return WriteResult()

    async def _job_not_created(self, owner: Owner, job: Object, error: KubernetesError) -> WriteResult:
        """The result after ``error``.

        The API server refused ``job`` or is unavailable, or the name is taken: by an earlier call of ours, or by
        another owner's object.
        """
        try:
            found = await find(self._api, job) if isinstance(error, Conflict) else None
        except KubernetesError as unknown:
            return WriteResult(errors=_job_errors(owner, job, unknown))
        if found is not None:
            return WriteResult(name_taken=() if owner.owns(found) else (title(job),))
        if error.status in UNAVAILABLE_STATUSES:
            return WriteResult(errors=_job_errors(owner, job, error))
        return WriteResult(refused=RefusedJob(job["metadata"]["name"], bounded_text(str(error))))

    async def _create_keys(self, owner: Owner, keys: Object) -> None:
        """Create a Secret with generated keys. Raises :class:`NameTakenError` and :class:`KubernetesError`."""
        try:
            await call_api(self._api.create, keys)
        except Conflict:
            found = await find(self._api, keys)
            if found is None:
                raise
            if not owner.owns(found):
                raise NameTakenError from None

    async def _write(self, owner: Owner, child: Object, existing: Object | None) -> None:
        """Create or apply ``child`` unless nobody changed it since our last write."""
        child = with_digest(child)
        key, digest = _key(child), child["metadata"]["annotations"][DIGEST_ANNOTATION]
        if existing is not None:
            if key not in self._written and is_unchanged(child, existing):
                self._written[key] = (digest, revision_of_spec(existing, child))
            if self._written.get(key) == (digest, revision_of_spec(existing, child)):
                self.refused.forget(key)  # perhaps of a change that was undone since
                return
        if existing is None:
            identity, write = (digest, None), partial(self._create, owner, child)
        else:
            # The digest on the object says "written" from the first apply on, but a later one may remove fields.
            self._written.setdefault(key, ("", None))
            identity = (digest, revision_of_spec(existing, child))
            write = partial(apply_over, self._api, owner, child, existing)
        written = await self.refused.attempt(key, identity, write)
        self._written[key] = (digest, revision_of_spec(written, child))

    async def _create(self, owner: Owner, child: Object) -> Object:
        try:
            return await call_api(self._api.create, child)
        except Conflict:
            found = await find(self._api, child)
        if found is None:
            return await self._create_again(child)
        if not owner.owns(found):
            raise NameTakenError
        # The observation did not show our own child yet.
        return await apply_over(self._api, owner, child, found)

    async def _create_again(self, child: Object) -> Object:
        """Create ``child`` after a conflict with an object that is gone.

        A second conflict with nothing is a refusal. Raises :class:`KubernetesError`.
        """
        try:
            return await call_api(self._api.create, child)
        except Conflict as error:
            if await find(self._api, child) is not None:
                raise
            raise refused(error) from error


def error_text(obj: Object, error: KubernetesError) -> str:
    """The API server's refusal of ``obj``, with the object's kind and name."""
    return bounded_text(f"{title(obj)}: {error}")


def _job_errors(owner: Owner, job: Object, error: KubernetesError) -> tuple[str, ...]:
    """The text for the status about ``job``, which was not written.

    The log names an API server that is unavailable, and the status does not, because the next reconcile tries again. A
    refusal is only in the status, because it may stay and each reconcile would log it.
    """
    text = error_text(job, error)
    if error.status not in UNAVAILABLE_STATUSES:
        return (text,)
    log.warning("%s: a Job could not be created or deleted: %s", owner.full_name, text)
    return ()


def _key(obj: Object) -> tuple[str, str]:
    return obj["kind"], obj["metadata"]["name"]

"""What the operator does with each of its rights, by its own code. A right that no code uses has no probe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
from kubernetes import client

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator import kubernetes_api
from aurora_operator.act.data_deletion import WORKLOADS
from aurora_operator.act.event_recorder import EventRecorder
from aurora_operator.act.finalizer import set_finalizer
from aurora_operator.act.status_writer import write_status
from aurora_operator.children.access import new_keys
from aurora_operator.children.owner import Owner
from aurora_operator.children.validation_job import ValidationAttempt, job
from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.kubernetes_api import HttpKubernetesApi, Object, Resource
from aurora_operator.lead.leadership import LeaderElector
from aurora_operator.plan import EventNote
from aurora_operator.plan.upgrade.decision import decide as decide_upgrade
from aurora_operator.plan.wanted_children import children
from aurora_operator.watch.api_stream import ApiStream, Page
from tests.integration.chart.conftest import TEAM
from tests.rig.chart.rendered_chart import NAMESPACE, Right
from tests.unit.operator.worlds import CONFIG, NOW, observed, spec


@dataclass(frozen=True)
class Probe:
    """A speculator, an administrator's API, and the operator's API with the rights of one ServiceAccount."""

    admin: HttpKubernetesApi
    client: client.ApiClient
    owner: Owner

    @property
    def api(self) -> HttpKubernetesApi:
        return HttpKubernetesApi(self.client)

    def child(self, resource: Resource) -> Object:
        """A child of this kind, as the operator makes it."""
        if resource == kubernetes_api.JOB:
            return job(self.owner, spec(), CONFIG, ValidationAttempt(version=1, attempt=1, active=0))
        if resource == kubernetes_api.SECRET:
            return new_keys(self.owner)
        world = replace(observed(), owner=self.owner)
        made = children(world, CONFIG, decide_upgrade(world, CONFIG, NOW))
        return next(obj for obj in made if obj["kind"] == resource.kind)


def get(probe: Probe, resource: Resource) -> None:
    obj = probe.owner if resource == kubernetes_api.SPECULATOR else probe.admin.create(probe.child(resource))
    name = obj.name if isinstance(obj, Owner) else obj["metadata"]["name"]
    assert probe.api.get(resource, TEAM, name)["metadata"]["name"] == name


def list_all(probe: Probe, resource: Resource) -> None:
    """The list of an informer in all namespaces."""
    asyncio.run(_list_page(probe.api, resource))


def watch(probe: Probe, resource: Resource) -> None:
    """The watch of an informer in all namespaces."""
    asyncio.run(_watch(probe.api, resource, asyncio.run(_list_page(probe.admin, resource)).revision))


async def _list_page(api: HttpKubernetesApi, resource: Resource) -> Page:
    stream = ApiStream(api.configuration)
    try:
        return await stream.list_page(resource, "", "", "")
    finally:
        await stream.close()


async def _watch(api: HttpKubernetesApi, resource: Resource, revision: int) -> None:
    stream = ApiStream(api.configuration)
    try:
        async for _ in stream.watch(resource, "", "", revision, seconds=1):
            pass
    finally:
        await stream.close()


def create(probe: Probe, resource: Resource) -> None:
    probe.api.create(probe.child(resource))


def patch(probe: Probe, resource: Resource) -> None:
    probe.admin.create(probe.child(resource))
    probe.api.apply(probe.child(resource))


def delete(probe: Probe, resource: Resource) -> None:
    made = probe.admin.create(probe.child(resource))["metadata"]
    probe.api.delete(resource, TEAM, made["name"], made["uid"])
    with pytest.raises(NotFound):
        probe.admin.get(resource, TEAM, made["name"])


def write_own_status(probe: Probe) -> None:
    write_status(probe.api, probe.owner, SpeculatorStatus())


def block_owner_deletion(probe: Probe) -> None:
    """Every child has an owner reference with blockOwnerDeletion."""
    probe.api.create(probe.child(kubernetes_api.SERVICE))


def hold_by_finalizer(probe: Probe) -> None:
    set_finalizer(probe.api, probe.owner, wanted=True)


def post_event(probe: Probe) -> None:
    """A refused Event is only logged. ``explained`` finds the log line."""
    note = EventNote("Probe", "a test of the operator's rights", warning=False)
    asyncio.run(EventRecorder(probe.api).post(note, probe.owner))


class LeaseCalls:
    """The election's calls. Keeps a refusal, which the election itself only logs before it tries again."""

    def __init__(self, api: HttpKubernetesApi) -> None:
        self._api = api
        self.refusal: KubernetesError | None = None
        self.on_refusal: Callable[[], object] = lambda: None

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        return self._kept(lambda: self._api.get(resource, namespace, name))

    def create(self, obj: Object) -> Object:
        return self._kept(lambda: self._api.create(obj))

    def replace(self, obj: Object) -> Object:
        return self._kept(lambda: self._api.replace(obj))

    def _kept(self, call: Callable[[], Object]) -> Object:
        try:
            return call()
        except (NotFound, Conflict):
            raise
        except KubernetesError as error:
            self.refusal = error
            self.on_refusal()
            raise


def lead(probe: Probe, *, lease_exists: bool) -> None:
    """Win the election for a Lease of the speculator's name."""
    lease = kubernetes_api.LEASE
    if lease_exists:
        metadata = {"name": probe.owner.name, "namespace": NAMESPACE}
        probe.admin.create({"apiVersion": lease.api_version, "kind": lease.kind, "metadata": metadata, "spec": {}})
    calls = LeaseCalls(probe.api)
    config = replace(CONFIG, operator_namespace=NAMESPACE, lease_name=probe.owner.name)
    asyncio.run(_lead_once(LeaderElector(calls, config), calls))
    if calls.refusal is not None:
        raise calls.refusal


async def _lead_once(elector: LeaderElector, calls: LeaseCalls) -> None:
    async def nothing() -> None:
        return

    loop, decided = asyncio.get_running_loop(), asyncio.Event()
    calls.on_refusal = lambda: loop.call_soon_threadsafe(decided.set)
    election = asyncio.create_task(elector.run(decided.set, nothing))
    async with asyncio.timeout(60):
        await decided.wait()
    election.cancel()
    await asyncio.gather(election, return_exceptions=True)


def _of_kinds(verb: str, use: Callable[..., None], *kinds: Resource) -> dict[tuple[str, str], Callable[[Probe], None]]:
    return {(kind.plural, verb): partial(use, resource=kind) for kind in kinds}


PROBES: dict[tuple[str, str], Callable[[Probe], None]] = {
    # The informers (watch.informers), with the namespaces of a shard.
    **_of_kinds("list", list_all, *kubernetes_api.WATCHED, kubernetes_api.NAMESPACE),
    **_of_kinds("watch", watch, *kubernetes_api.WATCHED, kubernetes_api.NAMESPACE),
    # Observer reads the speculator again, SecretReader the Secrets, and ChildWriter the object that holds a name.
    **_of_kinds("get", get, kubernetes_api.SPECULATOR, kubernetes_api.SECRET),
    **_of_kinds("get", get, *kubernetes_api.CHILDREN, kubernetes_api.JOB),
    # ChildWriter.
    **_of_kinds("create", create, *kubernetes_api.CHILDREN, kubernetes_api.JOB, kubernetes_api.SECRET),
    **_of_kinds("patch", patch, *kubernetes_api.CHILDREN),
    # DataDeletion. ChildWriter also deletes Jobs.
    **_of_kinds("delete", delete, *WORKLOADS),
    ("auroraspeculators/status", "patch"): write_own_status,
    ("auroraspeculators/finalizers", "update"): block_owner_deletion,
    ("auroraspeculators", "patch"): hold_by_finalizer,
    ("events", "create"): post_event,
    ("leases", "create"): partial(lead, lease_exists=False),
    ("leases", "get"): partial(lead, lease_exists=True),
    ("leases", "update"): partial(lead, lease_exists=True),
}
"""Each right that the operator's code uses: resource and verb. There is no other way to a probe, so a right that is
granted and not used fails."""


def run_probe(probe: Probe, right: Right) -> None:
    """Do what the operator does with this right. Raises :class:`KubernetesError` when the right is missing."""
    PROBES[right.resource, right.verb](probe)

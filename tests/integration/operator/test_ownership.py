"""What the operator's writes do on a real API server when an object is not ours, or not ours any more."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aurora_operator.act.child_writer import DIGEST_ANNOTATION, ChildWriter, WriteResult
from aurora_operator.children.metadata import Owner
from aurora_operator.children.supporting_objects import new_keys, services
from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.kubernetes_api import (
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    NETWORK_POLICY,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    SPECULATOR,
    KubernetesApi,
    Object,
    connect,
)
from tests.rig.api_server import api_server
from tests.rig.network_cut import tcp_proxy
from tests.rig.operator_replicas import NAME, NAMESPACE, OperatorRig
from tests.unit.operator.worlds import channel, made, observed, root_owner, store

Existing = dict[tuple[str, str], Object]
KINDS = (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, DISRUPTION_BUDGET, NETWORK_POLICY)


@pytest.fixture(scope="module", name="rig")
def _rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorRig]:
    with api_server() as server:
        rig = OperatorRig(server, tmp_path_factory.mktemp("ownership"))
        rig.prepare()
        yield rig


@pytest.fixture(name="api")
async def _api(rig: OperatorRig) -> AsyncIterator[KubernetesApi]:
    async with await connect(str(rig.server.kubeconfig)) as client:
        yield KubernetesApi(client)


@pytest.fixture(name="owner")
def _owner(rig: OperatorRig) -> Iterator[Owner]:
    """The owner of a new speculator. Its children are removed afterwards, because no garbage collector runs here."""
    rig.create_speculator()
    metadata = rig.api.get(SPECULATOR, NAMESPACE, NAME)["metadata"]
    yield Owner(NAMESPACE, NAME, metadata["uid"], 1, metadata["resourceVersion"])
    rig.server.kubectl("delete", "auroraspeculator", NAME, "-n", NAMESPACE)
    for resource in (*KINDS, SECRET):
        rig.server.kubectl("delete", resource.plural, "--all", "-n", NAMESPACE)


def wanted(owner: Owner) -> tuple[Object, ...]:
    owned = replace(store(0), channel=channel(0, owner=root_owner(owner)))
    return made(observed(owner=owner, store=owned)).children


async def existing(api: KubernetesApi, owner: Owner) -> Existing:
    """The children as an observation passes them on: only those that the speculator controls."""
    listed = [obj for resource in KINDS for obj in await api.list(resource, NAMESPACE)]
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in listed if owner.owns(obj)}


def foreign_service(rig: OperatorRig, name: str = NAME) -> Object:
    metadata = {"name": name, "namespace": NAMESPACE}
    spec = {"selector": {"app": "another"}, "ports": [{"port": 9}]}
    rig.server.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    return rig.api.get(SERVICE, NAMESPACE, name)


async def test_an_apply_with_another_uid_is_refused_and_never_creates(
    rig: OperatorRig, api: KubernetesApi, owner: Owner
) -> None:
    (service,) = services(owner)
    ours = await api.create(service)
    with_uid = {**service, "metadata": {**service["metadata"], "uid": ours["metadata"]["uid"]}}
    assert (await api.apply(with_uid))["metadata"]["uid"] == ours["metadata"]["uid"]
    await api.delete(ours)
    with pytest.raises(Conflict):
        await api.apply(with_uid)
    with pytest.raises(NotFound):
        await api.get(SERVICE, NAMESPACE, NAME)
    before = foreign_service(rig)
    with pytest.raises(KubernetesError, match=r"metadata\.uid"):
        await api.apply(with_uid)
    with pytest.raises(Conflict):
        await api.delete(ours)
    assert await api.get(SERVICE, NAMESPACE, NAME) == before


async def test_an_unknown_field_is_refused_and_named(api: KubernetesApi, owner: Owner) -> None:
    """Without strict validation the first write drops the field, and a later one is refused."""
    (service,) = services(owner)
    misspelt = {**service, "spec": {**service["spec"], "clusterIPPP": "None"}}
    with pytest.raises(KubernetesError, match="clusterIPPP"):
        await api.create(misspelt)
    with pytest.raises(KubernetesError, match="clusterIPPP"):
        await api.apply(misspelt)


async def test_children_that_a_former_speculator_left_are_taken_over_when_a_person_asks(
    rig: OperatorRig, api: KubernetesApi, owner: Owner
) -> None:
    former, adopting = replace(owner, uid="f0f0f0f0-0000-0000-0000-000000000000"), replace(owner, adopts=True)
    assert await ChildWriter(api).write(former, (), wanted(former), {}) == WriteResult()
    left = await existing(api, former)
    assert len(left) == len(wanted(former))
    for obj in left.values():  # as ``kubectl delete --cascade=orphan`` leaves them
        await api.patch(obj, {"metadata": {"ownerReferences": None}})
    result = await ChildWriter(api).write(owner, (), wanted(owner), {})
    assert result.workloads_held
    assert len(result.name_taken) == sum(kind != "Deployment" for kind, _ in left)
    assert await ChildWriter(api).write(adopting, (), wanted(adopting), {}) == WriteResult()
    taken = await existing(api, owner)
    assert {key: obj["metadata"]["uid"] for key, obj in taken.items()} == {
        key: obj["metadata"]["uid"] for key, obj in left.items()
    }


async def test_foreign_objects_are_left_alone_whenever_they_appear(
    rig: OperatorRig, api: KubernetesApi, owner: Owner
) -> None:
    before = foreign_service(rig)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": NAMESPACE}}
    rig.server.apply(account)
    account_before = rig.api.get(SERVICE_ACCOUNT, NAMESPACE, NAME)
    keys = new_keys(owner)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": keys["metadata"] | {"ownerReferences": []}}
    rig.server.apply(secret)
    writer = ChildWriter(api)
    result = await writer.write(owner, (keys,), wanted(owner), await existing(api, owner))
    assert set(result.name_taken) == {f"Service {NAME}", f"ServiceAccount {NAME}", f"Secret {NAME}-keys"}
    assert (result.errors, result.workloads_held) == ((), True)
    assert rig.api.get(SERVICE, NAMESPACE, NAME) == before
    assert rig.api.get(SERVICE_ACCOUNT, NAMESPACE, NAME) == account_before
    assert "data" not in rig.api.get(SECRET, NAMESPACE, f"{NAME}-keys")
    # The children exist as soon as the names are free.
    for kind in ("service", "serviceaccount"):
        rig.server.kubectl("delete", kind, NAME, "-n", NAMESPACE)
    rig.server.kubectl("delete", "secret", f"{NAME}-keys", "-n", NAMESPACE)
    assert await writer.write(owner, (keys,), wanted(owner), await existing(api, owner)) == WriteResult()
    assert owner.owns(rig.api.get(SERVICE, NAMESPACE, NAME))
    assert owner.owns(rig.api.get(SECRET, NAMESPACE, f"{NAME}-keys"))
    # A foreign object takes the name of a child between the look and the write.
    looked = await existing(api, owner)
    await api.delete(looked["Service", NAME])
    replaced = foreign_service(rig)
    with pytest.raises(KubernetesError):
        await writer.write(owner, (), services(owner), without_digests(looked))
    assert rig.api.get(SERVICE, NAMESPACE, NAME) == replaced
    result = await writer.write(owner, (), services(owner), await existing(api, owner))
    assert result.name_taken == (f"Service {NAME}",)


async def test_a_field_that_a_child_no_longer_has_is_removed(api: KubernetesApi, owner: Owner) -> None:
    wide, narrow = with_extra_field(wanted(owner)), wanted(owner)
    assert await ChildWriter(api).write(owner, (), wide, {}) == WriteResult()
    assert await ChildWriter(api).write(owner, (), narrow, await existing(api, owner)) == WriteResult()
    applied = await existing(api, owner)
    assert {obj["metadata"]["labels"].get("extra") for obj in applied.values()} == {None}
    assert "priorityClassName" not in applied["Deployment", NAME]["spec"]["template"]["spec"]


async def test_a_second_write_of_the_same_children_changes_nothing(api: KubernetesApi, owner: Owner) -> None:
    """A pod template that changed, even by a default, would restart every pod."""
    assert await ChildWriter(api).write(owner, (), wanted(owner), {}) == WriteResult()
    before = await existing(api, owner)
    assert await ChildWriter(api).write(owner, (), wanted(owner), before) == WriteResult()
    assert await existing(api, owner) == before
    assert await ChildWriter(api).write(owner, (), wanted(owner), without_digests(before)) == WriteResult()
    assert [obj["metadata"].get("generation") for obj in (await existing(api, owner)).values()] == [
        obj["metadata"].get("generation") for obj in before.values()
    ]


async def test_an_object_that_carries_a_users_reference_to_the_speculator_is_not_ours(
    rig: OperatorRig, api: KubernetesApi, owner: Owner
) -> None:
    foreign_service(rig)
    reference = {"apiVersion": "aurora.dev/v1alpha1", "kind": "AuroraSpeculator", "name": NAME, "uid": owner.uid}
    patch = {"metadata": {"ownerReferences": [reference]}}
    before = rig.api.patch(rig.api.get(SERVICE, NAMESPACE, NAME), patch)
    result = await ChildWriter(api).write(owner, (), wanted(owner), await existing(api, owner))
    assert result.name_taken == (f"Service {NAME}",)
    assert rig.api.get(SERVICE, NAMESPACE, NAME) == before


async def test_a_write_that_the_network_delivers_after_the_next_leaders_is_refused(
    rig: OperatorRig, api: KubernetesApi, owner: Owner, tmp_path: Path
) -> None:
    """The former leader's request sat in the network for as long as the next leader needed to act."""
    former, newer = wanted(owner), with_extra_field(wanted(owner))
    assert await ChildWriter(api).write(owner, (), former, {}) == WriteResult()
    looked = await existing(api, owner)
    with tcp_proxy(int(rig.server.url.rpartition(":")[2])) as proxy:
        kubeconfig = tmp_path / "kubeconfig"
        text = rig.server.kubeconfig.read_text()
        kubeconfig.write_text(text.replace(rig.server.url, f"https://127.0.0.1:{proxy.port}"))
        async with await connect(str(kubeconfig)) as client:
            slow = KubernetesApi(client)
            await slow.get(DEPLOYMENT, NAMESPACE, NAME)  # the connection is there before the network is cut
            proxy.cut()
            late = asyncio.create_task(ChildWriter(slow).write(owner, (), former, without_digests(looked)))
            await asyncio.sleep(1)
            assert await ChildWriter(api).write(owner, (), newer, looked) == WriteResult()
            after = await existing(api, owner)
            proxy.deliver()
            with pytest.raises(Conflict):
                await late
    assert await existing(api, owner) == after


async def test_a_child_that_gave_its_owner_up_since_the_look_is_not_adopted(
    rig: OperatorRig, api: KubernetesApi, owner: Owner
) -> None:
    (service,) = services(owner)
    assert await ChildWriter(api).write(owner, (), (service,), {}) == WriteResult()
    looked = await existing(api, owner)
    no_owner = '{"metadata": {"ownerReferences": null}}'
    rig.server.kubectl("patch", "service", NAME, "-n", NAMESPACE, "--type=merge", "-p", no_owner)
    before = rig.api.get(SERVICE, NAMESPACE, NAME)
    with pytest.raises(Conflict):
        await ChildWriter(api).write(owner, (), (service,), without_digests(looked))
    result = await ChildWriter(api).write(owner, (), (service,), await existing(api, owner))
    assert result == WriteResult(name_taken=(f"Service {NAME}",))
    assert rig.api.get(SERVICE, NAMESPACE, NAME) == before


def without_digests(objects: Existing) -> Existing:
    """``objects`` in a form in which none looks as we last wrote it, so that each is written again."""
    stripped = copy.deepcopy(objects)
    for obj in stripped.values():
        del obj["metadata"]["annotations"][DIGEST_ANNOTATION]
    return stripped


def with_extra_field(objects: Sequence[Object]) -> list[Object]:
    """``objects`` with one more label each, and one more field in the Deployment's pods."""
    wider: list[dict[str, Any]] = copy.deepcopy(list(objects))
    for obj in wider:
        obj["metadata"]["labels"]["extra"] = "yes"
        if obj["kind"] == "Deployment":
            obj["spec"]["template"]["spec"]["priorityClassName"] = "system-node-critical"
    return wider

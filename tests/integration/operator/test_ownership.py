"""What the operator's writes do on a real API server when an object is not ours, or not ours any more."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import new_client_from_config

from aurora_operator.act.child_writer import ChildWriter, WriteResult
from aurora_operator.act.field_ownership import applied_managed_fields
from aurora_operator.act.unchanged_child import DIGEST_ANNOTATION
from aurora_operator.children.access import new_keys
from aurora_operator.children.network import services
from aurora_operator.children.owner import Owner
from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.kubernetes_api import (
    CHILDREN,
    DEPLOYMENT,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    SPECULATOR,
    HttpKubernetesApi,
    Object,
)
from aurora_operator.observe.kubernetes_views import workload_view
from aurora_operator.plan.upgrade.decision import decide
from aurora_operator.plan.wanted_children import children
from tests.rig.api_server import api_server
from tests.rig.network_cut import tcp_proxy
from tests.rig.operator_replicas import NAME, NAMESPACE, OperatorRig
from tests.unit.operator.worlds import CONFIG, NOW, observed

Existing = dict[tuple[str, str], Object]


@pytest.fixture(scope="module", name="rig")
def _rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorRig]:
    with api_server() as server:
        rig = OperatorRig(server, tmp_path_factory.mktemp("ownership"))
        rig.prepare()
        yield rig


@pytest.fixture(name="owner")
def _owner(rig: OperatorRig) -> Iterator[Owner]:
    """The owner of a new speculator. Its children are removed afterwards, because no garbage collector runs here."""
    rig.create_speculator()
    metadata = rig.api.get(SPECULATOR, NAMESPACE, NAME)["metadata"]
    yield Owner(NAMESPACE, NAME, metadata["uid"], 1, metadata["resourceVersion"])
    rig.server.kubectl("delete", "auroraspeculator", NAME, "-n", NAMESPACE)
    for resource in (*CHILDREN, SECRET):
        rig.server.kubectl("delete", resource.plural, "--all", "-n", NAMESPACE)


def wanted(owner: Owner) -> tuple[Object, ...]:
    world = observed(owner=owner)
    return children(world, CONFIG, decide(world, CONFIG, NOW))


def existing(api: HttpKubernetesApi, owner: Owner) -> Existing:
    """The children as an observation passes them on: only those that the speculator controls."""
    listed = [obj for resource in CHILDREN for obj in api.list(resource, NAMESPACE)]
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in listed if owner.owns(obj)}


def foreign_service(rig: OperatorRig, name: str = NAME) -> Object:
    spec = {"selector": {"app": "another"}, "ports": [{"port": 9}]}
    rig.server.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
                      "spec": spec})  # fmt: skip
    return rig.api.get(SERVICE, NAMESPACE, name)


def own_records(obj: Object) -> list[tuple[str, str]]:
    return [
        (record["operation"], record.get("subresource", ""))
        for record in obj["metadata"]["managedFields"]
        if record["manager"] == "aurora-operator"
    ]


async def test_an_apply_with_another_uid_is_refused_and_never_creates(rig: OperatorRig, owner: Owner) -> None:
    (service,) = services(owner)
    ours = rig.api.create(service)
    with_uid = {**service, "metadata": {**service["metadata"], "uid": ours["metadata"]["uid"]}}
    assert rig.api.apply(with_uid)["metadata"]["uid"] == ours["metadata"]["uid"]
    rig.api.delete(SERVICE, NAMESPACE, NAME, ours["metadata"]["uid"])
    with pytest.raises(Conflict):
        rig.api.apply(with_uid)
    with pytest.raises(NotFound):
        rig.api.get(SERVICE, NAMESPACE, NAME)
    before = foreign_service(rig)
    with pytest.raises(KubernetesError, match=r"metadata\.uid"):
        rig.api.apply(with_uid)
    assert rig.api.get(SERVICE, NAMESPACE, NAME) == before


async def test_a_delete_with_another_uid_is_refused(rig: OperatorRig, owner: Owner) -> None:
    before = foreign_service(rig)
    with pytest.raises(Conflict):
        rig.api.delete(SERVICE, NAMESPACE, NAME, "11111111-2222-3333-4444-555555555555")
    assert rig.api.get(SERVICE, NAMESPACE, NAME) == before


async def test_foreign_objects_are_left_alone_whenever_they_appear(rig: OperatorRig, owner: Owner) -> None:
    before = foreign_service(rig)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": NAMESPACE}}
    rig.server.apply(account)
    account_before = rig.api.get(SERVICE_ACCOUNT, NAMESPACE, NAME)
    keys = new_keys(owner)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": keys["metadata"] | {"ownerReferences": []}}
    rig.server.apply(secret)
    writer = ChildWriter(rig.api)
    result = await writer.write(owner, (keys,), wanted(owner), existing(rig.api, owner))
    assert set(result.name_taken) == {f"Service {NAME}", f"ServiceAccount {NAME}", f"Secret {NAME}-keys"}
    assert result.errors == ()
    assert rig.api.get(SERVICE, NAMESPACE, NAME) == before
    assert rig.api.get(SERVICE_ACCOUNT, NAMESPACE, NAME) == account_before
    assert "data" not in rig.api.get(SECRET, NAMESPACE, f"{NAME}-keys")
    # The children exist as soon as the names are free and it is time to try again.
    for kind in ("service", "serviceaccount"):
        rig.server.kubectl("delete", kind, NAME, "-n", NAMESPACE)
    rig.server.kubectl("delete", "secret", f"{NAME}-keys", "-n", NAMESPACE)
    writer.refused.try_now()
    assert await writer.write(owner, (keys,), wanted(owner), existing(rig.api, owner)) == WriteResult()
    assert owner.owns(rig.api.get(SERVICE, NAMESPACE, NAME))
    assert owner.owns(rig.api.get(SECRET, NAMESPACE, f"{NAME}-keys"))
    # A foreign object takes the name of a child between the look and the write.
    looked = existing(rig.api, owner)
    rig.api.delete(SERVICE, NAMESPACE, NAME, looked["Service", NAME]["metadata"]["uid"])
    replaced = foreign_service(rig)
    result = await ChildWriter(rig.api).write(owner, (), wanted(owner), without_digests(looked))
    assert result.name_taken == (f"Service {NAME}",)
    assert rig.api.get(SERVICE, NAMESPACE, NAME) == replaced


async def test_a_field_that_a_child_no_longer_has_is_removed_although_the_child_was_created(
    rig: OperatorRig, owner: Owner
) -> None:
    wide, narrow = with_extra_field(wanted(owner), owner), wanted(owner)
    assert await ChildWriter(rig.api).write(owner, (), wide, {}) == WriteResult()
    created = existing(rig.api, owner)
    assert {tuple(own_records(obj)) for obj in created.values()} == {(("Update", ""),)}
    assert await ChildWriter(rig.api).write(owner, (), narrow, created) == WriteResult()
    applied = existing(rig.api, owner)
    for obj in applied.values():
        assert own_records(obj) == [("Apply", "")], obj["kind"]
        assert "extra" not in obj["metadata"]["labels"], obj["kind"]
        assert applied_managed_fields(obj["metadata"]["managedFields"]) is None
    deployment = applied["Deployment", NAME]["spec"]["template"]["spec"]
    assert "priorityClassName" not in deployment


async def test_the_change_of_field_ownership_restarts_nothing(rig: OperatorRig, owner: Owner) -> None:
    """A pod template that changed, even by a default, would restart every pod."""
    assert await ChildWriter(rig.api).write(owner, (), wanted(owner), {}) == WriteResult()
    before = existing(rig.api, owner)
    assert await ChildWriter(rig.api).write(owner, (), wanted(owner), without_digests(before)) == WriteResult()
    after = existing(rig.api, owner)
    assert [(key, without_bookkeeping(obj)) for key, obj in after.items()] == [
        (key, without_bookkeeping(obj)) for key, obj in before.items()
    ]


async def test_a_deployment_that_somebody_paused_goes_on_and_is_then_left_alone(rig: OperatorRig, owner: Owner) -> None:
    writer = ChildWriter(rig.api)
    assert await writer.write(owner, (), wanted(owner), {}) == WriteResult()
    rig.server.kubectl("rollout", "pause", f"deployment/{NAME}", "-n", NAMESPACE)
    paused = existing(rig.api, owner)
    seen = observed(owner=owner, deployment=workload_view(paused["Deployment", NAME]))
    assert seen.deployment is not None
    assert seen.deployment.paused
    going_on = children(seen, CONFIG, decide(seen, CONFIG, NOW))
    assert await writer.write(owner, (), going_on, paused) == WriteResult()
    continued = existing(rig.api, owner)["Deployment", NAME]
    assert "paused" not in continued["spec"]
    written = []
    for _ in range(2):  # the first write gives the field up
        assert await writer.write(owner, (), wanted(owner), existing(rig.api, owner)) == WriteResult()
        written.append(existing(rig.api, owner)["Deployment", NAME])
    assert written[0]["spec"] == continued["spec"]
    assert written[1] == written[0]


async def test_an_object_that_carries_a_users_reference_to_the_speculator_is_not_ours(
    rig: OperatorRig, owner: Owner
) -> None:
    foreign = foreign_service(rig)
    reference = {"apiVersion": "aurora.dev/v1alpha1", "kind": "AuroraSpeculator", "name": NAME, "uid": owner.uid}
    rig.server.apply({**without_server_fields(foreign), "metadata": {"name": NAME, "namespace": NAMESPACE,
                                                                     "ownerReferences": [reference]}})  # fmt: skip
    before = rig.api.get(SERVICE, NAMESPACE, NAME)
    result = await ChildWriter(rig.api).write(owner, (), wanted(owner), existing(rig.api, owner))
    assert result.name_taken == (f"Service {NAME}",)
    assert rig.api.get(SERVICE, NAMESPACE, NAME) == before


async def test_an_apply_over_an_older_look_is_refused_but_a_newer_status_delays_nothing(
    rig: OperatorRig, owner: Owner
) -> None:
    """The fence of a write that a former leader sent, and that arrives after the next leader's."""
    assert await ChildWriter(rig.api).write(owner, (), wanted(owner), {}) == WriteResult()
    looked = existing(rig.api, owner)
    status = '{"status": {"observedGeneration": 1, "conditions": []}}'
    rig.server.kubectl(
        "patch", "deployment", NAME, "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p", status
    )
    wide = with_extra_field(wanted(owner), owner)
    assert await ChildWriter(rig.api).write(owner, (), wide, looked) == WriteResult()
    after = rig.api.get(DEPLOYMENT, NAMESPACE, NAME)
    assert "priorityClassName" in after["spec"]["template"]["spec"]
    with pytest.raises(Conflict):
        await ChildWriter(rig.api).write(owner, (), wanted(owner), without_digests(looked))
    assert rig.api.get(DEPLOYMENT, NAMESPACE, NAME) == after


async def test_a_write_that_the_network_delivers_after_the_next_leaders_is_refused(
    rig: OperatorRig, owner: Owner, tmp_path: Path
) -> None:
    """The former leader's request sat in the network for as long as the next leader needed to act."""
    former, newer = wanted(owner), with_extra_field(wanted(owner), owner)
    assert await ChildWriter(rig.api).write(owner, (), former, {}) == WriteResult()
    looked = existing(rig.api, owner)
    with tcp_proxy(int(rig.server.url.rpartition(":")[2])) as proxy:
        kubeconfig = tmp_path / "kubeconfig"
        text = rig.server.kubeconfig.read_text()
        kubeconfig.write_text(text.replace(rig.server.url, f"https://127.0.0.1:{proxy.port}"))
        slow = HttpKubernetesApi(new_client_from_config(str(kubeconfig)))
        slow.get(DEPLOYMENT, NAMESPACE, NAME)  # the connection is there before the network is cut
        proxy.cut()
        late = asyncio.create_task(ChildWriter(slow).write(owner, (), former, without_digests(looked)))
        await asyncio.sleep(1)
        assert await ChildWriter(rig.api).write(owner, (), newer, looked) == WriteResult()
        after = existing(rig.api, owner)
        proxy.deliver()
        with pytest.raises(Conflict):
            await late
    assert existing(rig.api, owner) == after


async def test_a_child_that_gave_its_owner_up_since_the_look_is_not_adopted(rig: OperatorRig, owner: Owner) -> None:
    (service,) = services(owner)
    assert await ChildWriter(rig.api).write(owner, (), (service,), {}) == WriteResult()
    looked = existing(rig.api, owner)
    no_owner = '{"metadata": {"ownerReferences": null}}'
    rig.server.kubectl("patch", "service", NAME, "-n", NAMESPACE, "--type=merge", "-p", no_owner)
    before = rig.api.get(SERVICE, NAMESPACE, NAME)
    result = await ChildWriter(rig.api).write(owner, (), (service,), without_digests(looked))
    assert result == WriteResult(name_taken=(f"Service {NAME}",))
    assert rig.api.get(SERVICE, NAMESPACE, NAME) == before


def without_digests(objects: dict[tuple[str, str], Object]) -> dict[tuple[str, str], Object]:
    """``objects`` in a form in which none looks as we last wrote it, so that each is written again."""
    made = copy.deepcopy(objects)
    for obj in made.values():
        del obj["metadata"]["annotations"][DIGEST_ANNOTATION]
    return made


def with_extra_field(objects: Sequence[Object], owner: Owner) -> list[Object]:
    """``objects`` with one more label each, and one more field in the Deployment's pods."""
    made = copy.deepcopy(list(objects))
    for obj in made:
        obj["metadata"]["labels"]["extra"] = "yes"
        if obj["kind"] == "Deployment":
            obj["spec"]["template"]["spec"]["priorityClassName"] = "system-node-critical"
    return made


def without_bookkeeping(obj: Object) -> dict[str, Any]:
    metadata = {k: v for k, v in obj["metadata"].items() if k not in ("managedFields", "resourceVersion")}
    return {**obj, "metadata": metadata}


def without_server_fields(obj: Object) -> dict[str, Any]:
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "spec": {"selector": obj["spec"]["selector"],
            "ports": [{"port": 9}]}}  # fmt: skip

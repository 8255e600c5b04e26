"""A child whose name belongs to another owner's object is reported and never touched."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import pytest

from aurora_operator.act.child_writer import ChildWriter, WriteResult
from aurora_operator.children.access import new_keys, service_accounts
from aurora_operator.children.network import disruption_budget, services
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.kubernetes_api import Object, Resource
from aurora_operator.observe.observed import RefusedJob
from tests.unit.operator.worlds import CONFIG, OWNER, spec

(SERVICE,) = services(OWNER)
CHANGED_SERVICE: Object = {**SERVICE, "spec": {**SERVICE["spec"], "publishNotReadyAddresses": True}}
BUDGET = disruption_budget(OWNER)
KEYS = new_keys(OWNER)
JOB: Object = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "team"}}


@dataclass
class FakeApi:
    """Stores objects by kind and name like an API server, uids and managed fields included. Records every write."""

    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    revision: int = 0
    unavailable: bool = False
    denied: set[str] = field(default_factory=set)
    """Calls, such as ``create Service``, that an admission webhook denies with HTTP 409."""
    status_writes: int = 0
    """How often a controller writes a status just before an apply."""

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        try:
            return self.objects[resource.kind, name]
        except KeyError:
            raise NotFound(f"{resource.kind} {name}", 404) from None

    def list(self, resource: Resource, namespace: str, labels: str = "") -> Sequence[Object]:
        raise NotImplementedError

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        raise NotImplementedError

    def merge_status(self, obj: Object, changes: Mapping[str, Any]) -> Object:
        raise NotImplementedError

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        if self.unavailable:
            raise KubernetesError("no connection")
        current = self.objects.get((obj["kind"], obj["metadata"]["name"]))
        if current is None:
            raise Conflict("uid mismatch", 409)
        self._admit("apply", obj)
        if current["metadata"]["uid"] != obj["metadata"]["uid"]:
            raise KubernetesError("metadata.uid: field is immutable", 422)
        self._check_revision(current, obj)
        records = current["metadata"]["managedFields"]
        applied = next((r for r in records if r["operation"] == "Apply"), {**records[0], "operation": "Apply"})
        return self._store("apply", obj, [*(r for r in records if r["operation"] != "Apply"), applied])

    def create(self, obj: Object) -> Object:
        if (obj["kind"], obj["metadata"]["name"]) in self.objects:
            raise Conflict("exists", 409)
        self._admit("create", obj)
        record = {"manager": "aurora-operator", "operation": "Update", "fieldsV1": {}}
        uid = f"uid-{self.revision}"
        return self._store("create", {**obj, "metadata": {**obj["metadata"], "uid": uid}}, [record])

    def set_managed_fields(self, obj: Object, managed_fields: Sequence[Object]) -> Object:
        self._admit("adopt fields", obj)
        self._check_revision(self.objects[obj["kind"], obj["metadata"]["name"]], obj)
        return self._store("adopt fields", obj, managed_fields)

    def _check_revision(self, current: Object, obj: Object) -> None:
        """A controller may write a status between any two calls."""
        if self.status_writes:
            self.status_writes -= 1
            self.revision += 1
            current = {**current, "metadata": {**current["metadata"], "resourceVersion": str(self.revision)}}
            self.objects[obj["kind"], obj["metadata"]["name"]] = current
        if obj["metadata"]["resourceVersion"] != current["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified", 409)

    def _admit(self, call: str, obj: Object) -> None:
        if f"{call} {obj['kind']}" in self.denied:
            raise Conflict("denied by a webhook", 409)

    def set_finalizers(self, obj: Object, finalizers: Sequence[str]) -> Object:
        raise AssertionError("a child has no finalizer of ours")

    def _store(self, call: str, obj: Object, managed_fields: Sequence[Object]) -> Object:
        self.writes.append(f"{call} {obj['kind']} {obj['metadata']['name']}")
        self.revision += 1
        metadata = {**obj["metadata"], "resourceVersion": str(self.revision), "managedFields": managed_fields}
        if obj["kind"] == "PodDisruptionBudget":
            metadata["generation"] = 1  # its specification never changes in these tests
        stored = {**obj, "metadata": metadata}
        self.objects[obj["kind"], obj["metadata"]["name"]] = stored
        return stored

    def owned(self) -> dict[tuple[str, str], Object]:
        """The objects that the observer would pass on."""
        return {key: obj for key, obj in self.objects.items() if OWNER.owns(obj)}

    def add_foreign(self, kind: str, name: str, *references: dict[str, Any]) -> None:
        metadata: dict[str, Any] = {"name": name, "uid": "foreign", "ownerReferences": [*references]}
        self.objects[kind, name] = {"kind": kind, "metadata": metadata}


async def write(api: FakeApi, writer: ChildWriter | None = None) -> WriteResult:
    writer = writer or ChildWriter(api)
    return await writer.write(OWNER, (KEYS,), (SERVICE, BUDGET), api.owned())


@pytest.mark.parametrize(
    "references",
    [(), ({"uid": "another", "controller": True},), ({"uid": OWNER.uid},)],
    ids=["no owner", "another controller", "a reference that a user added"],
)
async def test_a_foreign_object_is_reported_and_the_other_children_are_created(
    references: tuple[dict[str, Any], ...],
) -> None:
    api = FakeApi()
    api.add_foreign("Service", "chat", *references)
    result = await write(api)
    assert result == WriteResult(name_taken=("Service chat",))
    assert api.writes == ["create Secret chat-keys", "create PodDisruptionBudget chat"]


async def test_a_label_that_somebody_changed_is_written_again_although_the_generation_stays() -> None:
    api = FakeApi()
    writer = ChildWriter(api)
    await write(api, writer)
    api.writes.clear()
    metadata = api.objects["PodDisruptionBudget", "chat"]["metadata"]
    metadata |= {"resourceVersion": "100", "labels": {**metadata["labels"], "of-a-user": "x"}}
    await write(api, writer)
    assert api.writes == [], "the label of a user is no concern of ours"
    metadata["labels"] = {**metadata["labels"], "app.kubernetes.io/name": "changed"}
    await write(api, writer)
    assert "apply PodDisruptionBudget chat" in api.writes
    api.writes.clear()
    await write(api, writer)
    assert api.writes == []


async def test_a_child_is_created_once_its_name_is_free() -> None:
    api = FakeApi()
    writer = ChildWriter(api)
    api.add_foreign("Service", "chat")
    await write(api, writer)
    del api.objects["Service", "chat"]
    api.writes.clear()
    writer.refused.try_now()
    assert await write(api, writer) == WriteResult()
    assert api.writes == ["create Service chat"]


async def test_a_child_that_another_owner_replaced_is_left_alone() -> None:
    api = FakeApi()
    writer = ChildWriter(api)
    await write(api, writer)
    api.add_foreign("Service", "chat", {"uid": "another", "controller": True})
    api.writes.clear()
    assert await write(api, writer) == WriteResult(name_taken=("Service chat",))
    assert api.writes == []


async def test_a_child_that_is_replaced_between_the_look_and_the_write_is_left_alone() -> None:
    api = FakeApi()
    await write(api)
    before = api.owned()
    api.add_foreign("Service", "chat")
    foreign = api.objects["Service", "chat"]
    result = await ChildWriter(api).write(OWNER, (), (CHANGED_SERVICE,), before)
    assert result == WriteResult(name_taken=("Service chat",))
    assert api.objects["Service", "chat"] is foreign


async def test_a_child_that_vanishes_between_the_look_and_the_write_is_observed_again() -> None:
    api = FakeApi()
    await write(api)
    before = api.owned()
    del api.objects["Service", "chat"]
    with pytest.raises(Conflict):
        await ChildWriter(api).write(OWNER, (), (CHANGED_SERVICE,), before)
    assert ("Service", "chat") not in api.objects, "an apply never creates"


async def test_our_own_child_that_the_observation_did_not_show_is_applied() -> None:
    api = FakeApi()
    await write(api)
    api.writes.clear()
    assert await ChildWriter(api).write(OWNER, (), (SERVICE,), {}) == WriteResult()
    assert api.writes == ["apply Service chat", "adopt fields Service chat", "apply Service chat"]


async def test_the_first_apply_after_a_creation_takes_over_the_created_fields_once() -> None:
    api = FakeApi()
    await write(api)
    adopting = ["apply Service chat", "adopt fields Service chat", "apply Service chat"]
    for child, expected in ((CHANGED_SERVICE, adopting), (SERVICE, ["apply Service chat"])):
        api.writes.clear()
        await ChildWriter(api).write(OWNER, (), (child,), api.owned())
        assert api.writes == expected


async def test_after_a_restart_only_children_that_differ_are_written() -> None:
    api = FakeApi()
    await write(api)
    api.writes.clear()
    assert await write(api, ChildWriter(api)) == WriteResult()
    assert api.writes == []
    api.objects["Service", "chat"]["metadata"]["labels"] = {"somebody": "else"}
    await ChildWriter(api).write(OWNER, (), (SERVICE, BUDGET), api.owned())
    assert api.writes[0] == "apply Service chat"
    assert "apply PodDisruptionBudget chat" not in api.writes


async def test_a_foreign_secret_is_not_taken_for_the_keys() -> None:
    api = FakeApi()
    api.add_foreign("Secret", "chat-keys")
    result = await write(api)
    assert result == WriteResult(name_taken=("Secret chat-keys",), workloads_held=True)
    assert api.writes == ["create Service chat", "create PodDisruptionBudget chat"]


async def test_our_own_keys_are_never_created_twice() -> None:
    api = FakeApi()
    assert await write(api) == WriteResult()
    api.writes.clear()
    assert await write(api) == WriteResult(), "the Secret exists and is ours"
    assert [call for call in api.writes if "Secret" in call] == []


async def test_a_foreign_job_is_reported_and_our_own_is_not() -> None:
    api = FakeApi()
    api.add_foreign("Job", "j")
    assert await ChildWriter(api).write_jobs(OWNER, (), JOB, {}) == WriteResult(name_taken=("Job j",))
    api.add_foreign("Job", "j", {"uid": OWNER.uid, "controller": True})
    assert await ChildWriter(api).write_jobs(OWNER, (), JOB, {}) == WriteResult()


async def test_a_child_that_a_webhook_denies_with_a_conflict_is_reported_and_the_others_are_written() -> None:
    """A conflict would end the reconcile: no version would be rolled back, and no condition would tell why."""
    api = FakeApi(denied={"create Service", "create Secret"})
    denied = ("Secret chat-keys: denied by a webhook", "Service chat: denied by a webhook")
    assert await write(api) == WriteResult(errors=denied, workloads_held=True)
    assert api.writes == ["create PodDisruptionBudget chat"]
    api.denied.clear()
    assert await write(api) == WriteResult()


async def test_a_change_that_a_webhook_denies_with_a_conflict_is_reported() -> None:
    api = FakeApi()
    await write(api)
    api.denied = {"apply Service"}
    result = await ChildWriter(api).write(OWNER, (), (CHANGED_SERVICE,), api.owned())
    assert result == WriteResult(errors=("Service chat: denied by a webhook",))


async def test_a_change_that_is_undone_after_its_refusal_is_not_due_any_more() -> None:
    """A refusal that stays due would bring a reconcile every two seconds for ever."""
    api = FakeApi()
    writer = ChildWriter(api)
    await write(api, writer)
    api.denied = {"apply Service"}
    await writer.write(OWNER, (KEYS,), (CHANGED_SERVICE, BUDGET), api.owned())
    assert writer.refused.seconds_until_retry() < inf
    assert await write(api, writer) == WriteResult()
    assert writer.refused.seconds_until_retry() == inf


async def test_a_managed_field_record_that_a_webhook_denies_with_a_conflict_is_reported() -> None:
    api = FakeApi()
    await write(api)
    api.denied = {"adopt fields Service"}
    result = await ChildWriter(api).write(OWNER, (), (CHANGED_SERVICE,), api.owned())
    assert result == WriteResult(errors=("Service chat: denied by a webhook",))


async def test_an_apply_that_arrives_after_another_leaders_is_refused() -> None:
    """The fence of a write that sat in a slow webhook, or in the queue of a node that was cut off."""
    api = FakeApi()
    await write(api)
    before = api.owned()
    await ChildWriter(api).write(OWNER, (), (CHANGED_SERVICE,), api.owned())
    newer = api.objects["Service", "chat"]
    late = {**SERVICE, "metadata": before["Service", "chat"]["metadata"], "spec": {"ports": []}}
    api.writes.clear()
    with pytest.raises(Conflict):
        await ChildWriter(api).write(OWNER, (), (late,), before)
    assert api.writes == []
    assert api.objects["Service", "chat"] is newer


async def test_a_child_whose_owner_reference_was_removed_since_the_look_is_not_adopted() -> None:
    api = FakeApi()
    await write(api)
    before = api.owned()
    given_away = copy.deepcopy(api.objects["Service", "chat"])
    given_away["metadata"] |= {"ownerReferences": [], "resourceVersion": "99"}
    api.objects["Service", "chat"] = given_away
    result = await ChildWriter(api).write(OWNER, (), (CHANGED_SERVICE,), before)
    assert result == WriteResult(name_taken=("Service chat",))
    assert api.objects["Service", "chat"] is given_away


async def test_a_status_that_changes_meanwhile_delays_no_apply() -> None:
    """During a roll a Deployment has another resourceVersion with each pod that becomes ready."""
    api = FakeApi()
    await write(api)
    changed = {**BUDGET, "spec": {**BUDGET["spec"], "maxUnavailable": 2}}
    api.status_writes = 3
    assert await ChildWriter(api).write(OWNER, (), (changed,), api.owned()) == WriteResult()
    assert api.objects["PodDisruptionBudget", "chat"]["spec"] == changed["spec"]


async def test_a_status_that_never_rests_ends_as_a_conflict_that_is_tried_again_soon() -> None:
    api = FakeApi()
    await write(api)
    changed = {**BUDGET, "spec": {**BUDGET["spec"], "maxUnavailable": 2}}
    api.status_writes = 100
    with pytest.raises(Conflict):
        await ChildWriter(api).write(OWNER, (), (changed,), api.owned())


@pytest.mark.parametrize("foreign", [("Secret", "chat-keys"), ("ServiceAccount", "chat")])
async def test_workloads_wait_while_their_pods_would_use_the_keys_or_the_account_of_somebody_else(
    foreign: tuple[str, str],
) -> None:
    """After ``kubectl replace --force`` the former speculator's Secret may outlive its Deployment."""
    api = FakeApi()
    writer = ChildWriter(api)
    api.add_foreign(*foreign)
    children = (*service_accounts(OWNER, spec()), SERVICE, trainer_deployment(OWNER, spec(), CONFIG, 1))
    held = await writer.write(OWNER, (KEYS,), children, {})
    assert held == WriteResult(name_taken=(" ".join(foreign),), workloads_held=True)
    assert ("Deployment", "chat-trainer") not in api.objects
    del api.objects[foreign]
    writer.refused.try_now()
    assert await writer.write(OWNER, (KEYS,), children, api.owned()) == WriteResult()
    assert ("Deployment", "chat-trainer") in api.objects


async def test_the_refusal_of_a_workload_that_is_held_is_not_due() -> None:
    api = FakeApi(denied={"create Deployment"})
    writer = ChildWriter(api)
    children = (*service_accounts(OWNER, spec()), SERVICE, trainer_deployment(OWNER, spec(), CONFIG, 1))
    refused = await writer.write(OWNER, (), children, {})
    assert refused.errors == ("Deployment chat-trainer: denied by a webhook",)
    api.add_foreign("Secret", "chat-keys")
    writer.refused.try_now()
    held = await writer.write(OWNER, (KEYS,), children, api.owned())
    assert held.workloads_held
    assert writer.refused.seconds_until_retry() > 0, "only the Secret is tried again, after its delay"


async def test_a_child_that_changed_since_it_was_observed_is_observed_again() -> None:
    api = FakeApi()
    await write(api)
    before = api.owned()
    api.set_managed_fields(api.objects["Service", "chat"], api.objects["Service", "chat"]["metadata"]["managedFields"])
    api.denied = {"apply Service"}
    with pytest.raises(Conflict):
        await ChildWriter(api).write(OWNER, (), (CHANGED_SERVICE,), before)


async def test_a_job_that_a_webhook_denies_with_a_conflict_is_refused() -> None:
    api = FakeApi(denied={"create Job"})
    refused = WriteResult(refused=RefusedJob("j", "denied by a webhook"))
    assert await ChildWriter(api).write_jobs(OWNER, (), JOB, {}) == refused

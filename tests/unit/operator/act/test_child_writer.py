"""Only our own children are written, only where something differs, and never over a version that nobody looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from aurora_operator.act.child_writer import DIGEST_ANNOTATION, ChildWriter, WriteResult, is_unchanged, with_digest
from aurora_operator.children.supporting_objects import disruption_budgets, new_keys, service_accounts, services
from aurora_operator.children.trainer_deployment import trainer_deployment
from aurora_operator.errors import Conflict, KubernetesError
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import RefusedJob
from tests.unit.operator.fake_api import DENIED, UNAVAILABLE, FakeApi
from tests.unit.operator.worlds import CONFIG, OWNER, spec

KEYS, (SERVICE,), (BUDGET,) = new_keys(OWNER), services(OWNER), disruption_budgets(OWNER, spec().serving, 0)
(ACCOUNT, *_) = service_accounts(OWNER, spec())
TRAINER = trainer_deployment(OWNER, spec(), CONFIG, 1)
CHANGED_SERVICE = {**SERVICE, "spec": {**SERVICE["spec"], "sessionAffinity": "ClientIP"}}
JOB = {"kind": "Job", "metadata": {**SERVICE["metadata"], "name": "j"}, "spec": {}}
OBSOLETE = [{"kind": "Job", "metadata": {**SERVICE["metadata"], "name": name}} for name in ("old", "older")]


def owned(api: FakeApi) -> dict[tuple[str, str], Object]:
    """The children as an observation passes them on."""
    return {key: obj for key, obj in api.objects.items() if OWNER.owns(obj)}


def put_foreign(api: FakeApi, kind: str, name: str, *references: dict[str, Any], uid: str = "foreign") -> Object:
    metadata = {"name": name, "namespace": OWNER.namespace, "uid": uid, "ownerReferences": [*references]}
    return api.put({"kind": kind, "metadata": metadata})


async def write(api: FakeApi, *children: Object, keys: bool = True) -> WriteResult:
    """Write ``children``, or a Service and a PodDisruptionBudget, after an observation."""
    return await ChildWriter(api).write(OWNER, [KEYS] if keys else [], children or (SERVICE, BUDGET), owned(api))


async def test_children_are_created_once_and_written_again_only_where_they_differ() -> None:
    api = FakeApi()
    assert await write(api) == WriteResult()
    assert api.writes == ["create Secret chat-keys", "apply Service chat", "apply PodDisruptionBudget chat"]
    api.calls.clear()
    assert await write(api, keys=False) == WriteResult()
    assert api.calls == [], "a restarted operator writes nothing, and reads no child one by one"
    api.put({**api.objects["Service", "chat"], "spec": {**SERVICE["spec"], "ports": []}})
    api.put({**api.objects["PodDisruptionBudget", "chat"], "status": {"currentHealthy": 1}})
    await write(api, keys=False)
    assert api.writes == ["apply Service chat"]
    assert api.objects["Service", "chat"]["spec"] == SERVICE["spec"]


async def test_a_budget_that_is_not_wanted_any_more_is_deleted_but_not_where_nothing_is_decided() -> None:
    api = FakeApi()
    await write(api)
    await ChildWriter(api).write(OWNER, [], [], owned(api))
    assert ("PodDisruptionBudget", "chat") in api.objects
    await write(api, SERVICE)
    assert ("PodDisruptionBudget", "chat") not in api.objects
    put_foreign(api, "PodDisruptionBudget", "chat")
    await write(api, SERVICE)
    assert ("PodDisruptionBudget", "chat") in api.objects


async def test_keys_that_are_ours_are_never_replaced() -> None:
    api = FakeApi()
    await write(api)
    keys = copy.deepcopy(api.objects["Secret", "chat-keys"])
    assert await write(api) == WriteResult()
    assert api.objects["Secret", "chat-keys"] == keys


@pytest.mark.parametrize(
    ("adopts", "labels", "controller", "taken_over"),
    [
        (True, {}, None, True),
        (False, {}, None, False),
        (True, {}, "another", False),
        (True, {"app.kubernetes.io/instance": "other"}, None, False),
        (True, {"app.kubernetes.io/managed-by": "somebody"}, None, False),
    ],
    ids=["an orphan", "nobody asked", "controlled", "of another speculator", "not made by the operator"],
)
async def test_what_a_former_speculator_left_is_taken_over_when_a_person_asks(
    adopts: bool, labels: dict[str, str], controller: str | None, taken_over: bool
) -> None:
    """``kubectl delete --cascade=orphan``, then the same resource with the annotation ``aurora.dev/adopt``."""
    api, owner = FakeApi(), replace(OWNER, adopts=adopts)
    references = [{"uid": controller, "controller": True}] if controller else []
    left = {**SERVICE["metadata"], "ownerReferences": references, "labels": SERVICE["metadata"]["labels"] | labels}
    before = api.put({**SERVICE, "metadata": left})
    result = await ChildWriter(api).write(owner, (), (SERVICE,), {})
    assert result == WriteResult(name_taken=() if taken_over else ("Service chat",))
    after = api.objects["Service", "chat"]
    assert OWNER.owns(after) is taken_over
    assert after["metadata"]["uid"] == before["metadata"]["uid"], "it is the same object"
    assert taken_over or after == before


async def test_a_secret_that_a_former_speculator_left_is_named_and_not_used() -> None:
    """The operator may create Secrets, and not change them."""
    api = FakeApi()
    api.put({**KEYS, "metadata": {**KEYS["metadata"], "ownerReferences": []}})
    result = await ChildWriter(api).write(replace(OWNER, adopts=True), [KEYS], (SERVICE, TRAINER), {})
    assert result == WriteResult(name_taken=("Secret chat-keys",), workloads_held=True)


def change(api: FakeApi) -> None:
    api.put({**api.objects["Service", "chat"], "spec": {"ports": []}})


def give_away(api: FakeApi) -> None:
    """The object keeps its uid, and is not ours any more."""
    service = api.objects["Service", "chat"]
    api.put({**service, "metadata": {**service["metadata"], "ownerReferences": []}})


def replace_by_a_foreign_one(api: FakeApi) -> None:
    api.remove("Service", "chat")
    put_foreign(api, "Service", "chat")


def delete(api: FakeApi) -> None:
    api.remove("Service", "chat")


@pytest.mark.parametrize("meanwhile", [change, give_away, replace_by_a_foreign_one, delete])
async def test_an_apply_that_comes_too_late_is_refused_and_the_speculator_observed_again(
    meanwhile: Callable[[FakeApi], None],
) -> None:
    """The write sat in a slow webhook, or in the queue of a node that was cut off, while another leader acted."""
    api = FakeApi()
    await write(api)
    api.before["apply Service"] = lambda: meanwhile(api)
    with pytest.raises(Conflict):
        await write(api, CHANGED_SERVICE)
    left = api.objects.get(("Service", "chat"), {})
    assert "sessionAffinity" not in left.get("spec", {})
    assert bool(left) is (meanwhile is not delete), "a deleted child is not created again"


@pytest.mark.parametrize(
    "references",
    [(), ({"uid": "another", "controller": True},), ({"uid": OWNER.uid},)],
    ids=["no owner", "another controller", "a reference that a user added"],
)
async def test_an_object_of_somebody_else_is_named_and_left_alone(references: tuple[dict[str, Any], ...]) -> None:
    api = FakeApi()
    foreign = put_foreign(api, "Service", "chat", *references)
    assert await write(api) == WriteResult(name_taken=("Service chat",))
    assert api.objects["Service", "chat"] == foreign
    assert ("PodDisruptionBudget", "chat") in api.objects
    api.remove("Service", "chat")
    assert await write(api) == WriteResult(), "the name is free"


async def test_our_own_child_without_our_labels_is_found_and_put_right() -> None:
    api = FakeApi()
    await write(api)
    stripped = copy.deepcopy(api.objects["Service", "chat"])
    stripped["metadata"]["labels"] = {}
    api.put(stripped)
    assert await ChildWriter(api).write(OWNER, (), (SERVICE,), {}) == WriteResult()
    assert api.objects["Service", "chat"]["metadata"]["labels"] == SERVICE["metadata"]["labels"]


@pytest.mark.parametrize("foreign", [("Secret", "chat-keys"), ("ServiceAccount", "chat")])
async def test_no_workload_is_written_while_its_pods_would_use_what_is_not_ours(foreign: tuple[str, str]) -> None:
    """After ``kubectl replace --force`` the former speculator's Secret may outlive its Deployment."""
    api = FakeApi()
    put_foreign(api, *foreign)
    held = await write(api, ACCOUNT, SERVICE, TRAINER)
    assert held == WriteResult(name_taken=(" ".join(foreign),), workloads_held=True)
    assert ("Deployment", "chat-trainer") not in api.objects
    assert ("Service", "chat") in api.objects
    api.remove(*foreign)
    assert await write(api, ACCOUNT, SERVICE, TRAINER) == WriteResult()
    assert ("Deployment", "chat-trainer") in api.objects


async def test_refusals_are_reported_and_the_other_children_are_written() -> None:
    api = FakeApi(faults={"apply Service": KubernetesError("no! " * 20_000, 422), "apply Deployment": DENIED})
    result = await write(api, SERVICE, TRAINER, BUDGET)
    service, deployment = result.errors
    assert (service[:17], len(service)) == ("Service chat: no!", 300)
    assert deployment == "Deployment chat-trainer: denied by a webhook"
    assert not result.workloads_held
    assert ("PodDisruptionBudget", "chat") in api.objects
    api.faults.clear()
    assert await write(api, SERVICE, TRAINER, BUDGET) == WriteResult(), "the next reconcile tries again"


async def test_without_keys_no_workload_is_written() -> None:
    """A pod could not start. The Secret's refusal is told, and not that of each pod."""
    api = FakeApi(faults={"create Secret": DENIED})
    result = await write(api, SERVICE, TRAINER)
    assert result == WriteResult(errors=("Secret chat-keys: denied by a webhook",), workloads_held=True)


@pytest.mark.parametrize("error", [UNAVAILABLE, KubernetesError("slow down", 429)])
@pytest.mark.parametrize("call", ["create Secret", "apply Service", "create Job", "delete Job"])
async def test_an_api_server_that_is_unavailable_ends_the_reconcile(call: str, error: KubernetesError) -> None:
    """That is no refusal of a child, so no condition tells it."""
    api = FakeApi(faults={call: error})
    api.put(OBSOLETE[0])
    jobs = call.endswith("Job")
    writes = ChildWriter(api).write_jobs(OWNER, ("old",), JOB, owned(api)) if jobs else write(api)
    with pytest.raises(KubernetesError) as raised:
        await writes
    assert raised.value is error


async def test_scaling_writes_nothing_of_the_deployment_but_its_replicas() -> None:
    api = FakeApi()
    serving = {**TRAINER, "metadata": {**TRAINER["metadata"], "name": OWNER.name}}
    await write(api, serving)
    for _ in range(2):
        assert await ChildWriter(api).scale(OWNER, 7, owned(api)) == ()
    assert api.writes[-2:] == ["apply Deployment chat", "patch Deployment chat"]
    scaled = api.objects["Deployment", "chat"]
    assert scaled["spec"] == {**serving["spec"], "replicas": 7}
    api.faults = {"patch Deployment": DENIED}
    assert await ChildWriter(api).scale(OWNER, 8, owned(api)) == ("Deployment chat: denied by a webhook",)
    assert await ChildWriter(api).scale(OWNER, 8, {}) == (), "there is none yet"


async def test_obsolete_jobs_are_deleted_before_the_next_one_is_created() -> None:
    api = FakeApi()
    for job in OBSOLETE:
        api.put(job)
    seen = owned(api)
    assert await ChildWriter(api).write_jobs(OWNER, ("old", "older", "gone"), JOB, seen) == WriteResult()
    assert api.calls == ["delete Job old", "delete Job older", "create Job j"], "nobody observed a Job `gone`"


async def test_a_refused_deletion_is_reported_and_delays_only_the_next_measurement() -> None:
    """One measurement runs at a time. The other obsolete Jobs are deleted all the same."""
    api = FakeApi(faults={"delete Job older": DENIED})
    for job in OBSOLETE:
        api.put(job)
    result = await ChildWriter(api).write_jobs(OWNER, ("older", "old"), JOB, owned(api))
    assert result == WriteResult(errors=("Job older: denied by a webhook",))
    assert [*api.objects] == [("Job", "older")]


async def test_a_job_whose_name_another_object_has_by_now_is_not_deleted() -> None:
    api = FakeApi()
    api.put(OBSOLETE[0])
    seen = owned(api)
    api.remove("Job", "old")
    foreign = put_foreign(api, "Job", "old")
    assert await ChildWriter(api).write_jobs(OWNER, ("old",), JOB, seen) == WriteResult()
    assert api.objects["Job", "old"] == foreign


async def test_a_refused_job_is_a_fact_about_the_measurement_alone() -> None:
    api = FakeApi(faults={"create Job": KubernetesError("exceeded quota: jobs " * 100, 403)})
    result = await ChildWriter(api).write_jobs(OWNER, (), JOB, {})
    assert result.refused is not None
    assert result == WriteResult(refused=RefusedJob("j", result.refused.message)), "serving is not degraded"
    assert len(result.refused.message) == 300


async def test_a_job_of_the_same_name_is_ours_or_named() -> None:
    api = FakeApi()
    put_foreign(api, "Job", "j")
    assert await ChildWriter(api).write_jobs(OWNER, (), JOB, {}) == WriteResult(name_taken=("Job j",))
    put_foreign(api, "Job", "j", {"uid": OWNER.uid, "controller": True})
    assert await ChildWriter(api).write_jobs(OWNER, (), JOB, {}) == WriteResult(), "it was created before a crash"


@pytest.mark.parametrize("kind", ["Secret", "Job"])
async def test_a_conflict_without_an_object_of_that_name_is_observed_again(kind: str) -> None:
    """A webhook may answer 409, and the object may have been deleted just then."""
    writer = ChildWriter(FakeApi(faults={f"create {kind}": Conflict("exists", 409)}))
    writes = writer.write_jobs(OWNER, (), JOB, {}) if kind == "Job" else writer.write(OWNER, (KEYS,), (), {})
    with pytest.raises(Conflict):
        await writes


CHILD: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"name": "chat", "labels": {"app": "aurora"}},
    "spec": {
        "replicas": 2,
        "containers": [
            {"name": "sglang", "args": ["--a", "1"], "resources": {"limits": {"nvidia.com/gpu": 1, "cpu": "4000m"}}},
            {"name": "agent"},
        ],
    },
}


def live(child: Object) -> Object:
    """``child`` as the API server shows it, with defaults, a status and quantities in its own spelling."""
    shown = copy.deepcopy(child)
    shown["metadata"] |= {"uid": "1", "generation": 3}
    shown["spec"]["containers"][0]["terminationMessagePath"] = "/dev/termination-log"
    shown["spec"]["containers"][0]["resources"]["limits"] = {"nvidia.com/gpu": "1", "cpu": "4"}
    return {**shown, "status": {"replicas": 2}}


def test_defaults_a_status_and_the_spelling_of_quantities_are_no_change() -> None:
    assert is_unchanged(with_digest(CHILD), live(with_digest(CHILD)))
    assert "annotations" not in CHILD["metadata"], "the argument is not changed"


@pytest.mark.parametrize(
    "alter",
    [
        lambda shown: shown["spec"].update(replicas=5),
        lambda shown: shown["spec"]["containers"][0].pop("args"),
        lambda shown: shown["spec"]["containers"].append({"name": "sidecar"}),
        lambda shown: shown["spec"]["containers"].reverse(),
        lambda shown: shown["spec"]["containers"][0]["resources"]["limits"].update(cpu="4100m"),
        lambda shown: shown["spec"]["containers"][0]["resources"]["limits"].update(memory="1Gi"),
        lambda shown: shown["metadata"]["annotations"].update({DIGEST_ANNOTATION: "0" * 16}),
        lambda shown: shown["metadata"].pop("annotations"),
    ],
    ids=["value", "missing field", "extra item", "order", "quantity", "extra quantity", "digest", "no annotations"],
)
def test_a_change_is_seen(alter: Callable[[Object], object]) -> None:
    shown = live(with_digest(CHILD))
    alter(shown)
    assert not is_unchanged(with_digest(CHILD), shown)

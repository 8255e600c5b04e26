"""Loops run while this process leads, one per speculator, and leave nothing behind."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from aurora_operator import loop_registry as module
from aurora_operator import metrics
from aurora_operator.act.authority import Authority
from aurora_operator.act.contest import Contest
from aurora_operator.kubernetes_api import Object
from aurora_operator.loop_registry import LoopRegistry
from aurora_operator.observe.cluster_cache import ClusterCache, Scope
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.reconcile_slots import MAX_RECONCILES
from aurora_operator.reconciler import Reconciler
from tests.unit.operator.worlds import CONFIG

SCOPE = Scope("AuroraSpeculator")


class FakeReconciler(Reconciler):
    """Counts its reconciles, and rests for an hour after each."""

    instances: dict[tuple[str, str], int]
    reconciles: list[str]

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.instances[self._key] = self.instances.get(self._key, 0) + 1

    async def reconcile(self, *, woken: bool = True) -> float:
        self.reconciles.append(self._key[1])
        metrics.READY.labels(*self._key).set(1)
        return 3600.0


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeReconciler.instances, FakeReconciler.reconciles = {}, []
    monkeypatch.setattr(module, "Reconciler", FakeReconciler)
    monkeypatch.setattr("aurora_operator.loop.DEBOUNCE_SECONDS", 0.001)


def speculator(name: str, revision: int) -> Object:
    metadata = {"namespace": "team", "name": name, "uid": f"{name}{revision}", "resourceVersion": str(revision)}
    return {"kind": "AuroraSpeculator", "metadata": metadata | {"generation": 1}}


def ready_series(name: str) -> float | None:
    return REGISTRY.get_sample_value("aurora_speculator_ready", {"namespace": "team", "name": name})


class RecordedAuthority(Authority):
    """Records where the installation says that it acts, or that it does not act any more."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.said: list[tuple[str, bool]] = []
        self.silent: list[str] = []

    def answer(self, stored: Object, *, acts: bool) -> None:
        self.said.append((stored["metadata"]["name"], acts))

    def leave_unanswered(self, stored: Object) -> None:
        self.silent.append(stored["metadata"]["name"])


class Rig:
    def __init__(self, config: OperatorConfig = CONFIG) -> None:
        self.cache = ClusterCache(["AuroraSpeculator", "Namespace"])
        unused: Any = None
        self.authority = RecordedAuthority(unused, config, lambda: None)
        self.loops = LoopRegistry(unused, self.cache, unused, config, self.authority)

    def create(self, name: str, revision: int) -> None:
        for key in self.cache.update(SCOPE, speculator(name, revision)):
            self.loops.wake(*key)

    def delete(self, name: str, revision: int) -> None:
        for key in self.cache.delete(SCOPE, speculator(name, revision)):
            self.loops.wake(*key)

    def label(self, revision: int, *, joins: bool) -> None:
        """The namespace joins the operator's shard, or leaves it."""
        take = self.cache.update if joins else self.cache.delete
        metadata = {"name": "team", "uid": "team", "resourceVersion": str(revision)}
        for key in take(Scope("Namespace"), {"kind": "Namespace", "metadata": metadata}):
            self.loops.wake(*key)


async def settle() -> None:
    await asyncio.sleep(0.05)


async def test_no_loop_runs_before_this_process_leads_or_after_it_stopped() -> None:
    rig = Rig()
    rig.create("chat", 1)
    await settle()
    assert FakeReconciler.reconciles == []
    rig.loops.start()
    await settle()
    assert FakeReconciler.reconciles == ["chat"]
    await rig.loops.stop()
    rig.create("code", 2)
    await settle()
    assert len(rig.loops) == 0
    assert FakeReconciler.reconciles == ["chat"]
    assert ready_series("chat") is None, "a standby shows no speculator"
    rig.loops.start()
    await settle()
    assert sorted(FakeReconciler.reconciles) == ["chat", "chat", "code"]
    await rig.loops.stop()


async def test_a_new_speculator_gets_a_loop_and_a_deleted_one_leaves_nothing_behind() -> None:
    rig = Rig()
    rig.loops.start()
    rig.create("chat", 1)
    await settle()
    assert ready_series("chat") == 1
    rig.delete("chat", 2)
    await settle()
    assert len(rig.loops) == 0
    assert ready_series("chat") is None
    await rig.loops.stop()


async def test_a_speculator_that_is_created_again_gets_a_loop_of_its_own() -> None:
    rig = Rig()
    rig.loops.start()
    rig.create("chat", 1)
    await settle()
    rig.delete("chat", 2)
    await asyncio.sleep(0)
    rig.create("chat", 3)
    await settle()
    assert FakeReconciler.instances == {("team", "chat"): 2} or len(FakeReconciler.reconciles) == 2
    assert len(rig.loops) == 1
    await rig.loops.stop()


async def test_a_speculator_that_is_created_again_within_one_pause_gets_a_loop_of_its_own() -> None:
    """``kubectl replace --force``: the former loop would sign the store's records with keys that are deleted."""
    rig = Rig()
    rig.loops.start()
    rig.create("chat", 1)
    await settle()
    rig.delete("chat", 2)
    rig.create("chat", 3)
    await settle()
    assert FakeReconciler.instances == {("team", "chat"): 2}
    assert FakeReconciler.reconciles == ["chat", "chat"]
    assert len(rig.loops) == 1
    await rig.loops.stop()


async def test_it_is_a_problem_when_no_reconcile_can_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.create("chat", 1)
    held = [rig.loops._slots.slot("team") for _ in range(MAX_RECONCILES)]
    for slot in held:
        await slot.acquire()
    rig.loops.start()
    await settle()
    assert list(rig.loops.overdue()) == []
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 601)
    assert list(rig.loops.overdue()) == ["no reconcile could begin for 601 s"]
    held[0].release()
    await asyncio.sleep(0.05)
    assert FakeReconciler.reconciles == ["chat"]
    assert list(rig.loops.overdue()) == []
    await rig.loops.stop()


async def test_no_loop_runs_in_a_namespace_that_the_api_server_refuses() -> None:
    rig, pods = Rig(), Scope("Pod", "team")
    rig.create("chat", 1)
    rig.loops.start()
    await settle()
    rig.cache.refuse(pods)
    rig.loops.wake("team", "")
    await settle()
    assert len(rig.loops) == 0
    rig.create("code", 2)
    await settle()
    assert len(rig.loops) == 0
    rig.cache.admit(pods)
    rig.loops.wake("team", "")
    await settle()
    assert sorted(FakeReconciler.reconciles) == ["chat", "chat", "code"]
    await rig.loops.stop()


async def test_no_challenge_is_answered_in_a_namespace_that_the_api_server_refuses() -> None:
    """Another installation would yield for ever, and nobody would act."""
    rig, pods = Rig(replace(CONFIG, shard="eu")), Scope("Pod", "team")
    rig.label(1, joins=True)
    rig.create("chat", 2)
    rig.loops.start()
    await settle()
    rig.cache.refuse(pods)
    rig.authority.said.clear()
    rig.loops.wake("team", "")
    rig.loops.wake("team", "chat")
    await settle()
    assert rig.authority.said == []
    assert set(rig.authority.silent) == {"chat"}
    rig.label(3, joins=False)
    assert set(rig.authority.said) == {("chat", False)}, "it is given up even so"
    rig.authority.said.clear()
    rig.label(4, joins=True)
    rig.cache.admit(pods)
    rig.loops.wake("team", "")
    assert set(rig.authority.said) == {("chat", True)}
    await rig.loops.stop()


async def test_a_namespace_that_the_api_server_refuses_keeps_no_contest() -> None:
    """Its speculators may vanish unseen, and would count as yielded for ever."""
    rig, pods = Rig(), Scope("Pod", "team")
    rig.create("chat", 1)
    rig.loops.start()
    await settle()
    rig.authority._contests["team", "chat"] = Contest("chat1", "another/aurora-operator", answers=1)
    rig.cache.refuse(pods)
    rig.loops.wake("team", "")
    await settle()
    rig.delete("chat", 2)
    assert rig.authority._contests == {}
    await rig.loops.stop()


async def test_an_event_of_a_namespace_looks_at_the_speculators_of_that_namespace_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(replace(CONFIG, shard="eu"))
    rig.create("chat", 1)
    rig.loops.start()
    monkeypatch.setattr(rig.cache, "speculators", None)
    rig.label(2, joins=True)
    await settle()
    assert FakeReconciler.reconciles == ["chat"]
    await rig.loops.stop()


async def test_objects_that_name_no_speculator_start_nothing() -> None:
    rig = Rig()
    rig.loops.start()
    rig.loops.wake("team", "")
    rig.loops.wake("team", "nobody")
    assert len(rig.loops) == 0
    await rig.loops.stop()


async def test_loops_run_only_in_the_namespaces_of_the_shard() -> None:
    rig = Rig(replace(CONFIG, shard="eu"))
    rig.create("chat", 1)
    rig.loops.start()
    rig.create("code", 2)
    await settle()
    assert len(rig.loops) == 0, "the namespace belongs to no shard"
    rig.label(3, joins=True)
    await settle()
    assert sorted(FakeReconciler.reconciles) == ["chat", "code"]
    rig.label(4, joins=False)
    await settle()
    assert len(rig.loops) == 0
    rig.label(5, joins=True)
    await settle()
    assert len(rig.loops) == 2
    await rig.loops.stop()


async def test_a_challenge_is_answered_while_this_process_leads_whatever_its_loops_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hangs(*_: Any, **__: Any) -> float:
        await asyncio.sleep(3600)
        return 0.0

    monkeypatch.setattr(FakeReconciler, "reconcile", hangs)
    rig = Rig()
    rig.create("chat", 1)
    assert rig.authority.said == [], "a standby says nothing"
    rig.loops.start()
    assert rig.authority.said == [("chat", True)], "a challenge may stand since before the start"
    await settle()
    rig.loops.wake("team", "chat")
    assert rig.authority.said == [("chat", True)] * 2
    await rig.loops.stop()
    rig.loops.wake("team", "chat")
    assert len(rig.authority.said) == 2


async def test_a_speculator_is_given_up_when_its_namespace_leaves_the_shard() -> None:
    rig = Rig(replace(CONFIG, shard="eu"))
    rig.create("chat", 1)
    rig.loops.start()
    assert rig.authority.said == [("chat", False)], "the namespace left while no replica led"
    rig.label(2, joins=True)
    await settle()
    rig.authority.said.clear()
    rig.label(3, joins=False)
    await settle()
    assert rig.authority.said
    assert set(rig.authority.said) == {("chat", False)}
    await rig.loops.stop()
    rig.label(4, joins=True)
    rig.label(5, joins=False)
    assert set(rig.authority.said) == {("chat", False)}


async def test_a_stuck_loop_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.create("chat", 1)
    rig.loops.start()
    await settle()
    assert list(rig.loops.overdue()) == []
    monkeypatch.setattr("aurora_operator.loop.SpeculatorLoop.overdue_seconds", 12.4)
    assert list(rig.loops.overdue()) == ["the loop of team/chat is overdue by 12 s"]
    await rig.loops.stop()

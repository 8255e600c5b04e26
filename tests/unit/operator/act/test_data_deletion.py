"""A speculator's stored objects are deleted after its pods, and its finalizer goes last, whatever fails in between."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from aurora_operator.act import data_deletion
from aurora_operator.act.custom_resource import EventRecorder
from aurora_operator.act.data_deletion import BUSY_DELAY_SECONDS, RETRY_DELAY_SECONDS, DataDeletion
from aurora_operator.children.metadata import COMMON_LABELS, FINALIZER, INFERENCE, Owner, selector
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.store.store_access import StoreCalls
from aurora_store import StoreConfig
from aurora_store.errors import StoreError
from aurora_store.root_deletion import DeletionProgress
from tests.unit.operator.fake_api import FakeApi, names_of
from tests.unit.operator.worlds import MINIMAL, OWNER

CONFIG = StoreConfig("bucket", "aurora/team/chat-1a2b3c4d", None, None, "access", "secret")
OURS = [{"kind": "AuroraSpeculator", "name": OWNER.name, "uid": OWNER.uid, "controller": True}]
LABELS = selector(OWNER, INFERENCE) | COMMON_LABELS


class Root:
    """A root of which a test says what each step finds."""

    def __init__(self, steps: list[DeletionProgress | StoreError]) -> None:
        self.steps, self.config, self.opened = steps, CONFIG, 0

    def step(self, _: float) -> DeletionProgress:
        found = self.steps.pop(0)
        if isinstance(found, StoreError):
            raise found
        return found


class Scene:
    """A speculator that is being deleted, with a Deployment and a Job."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: DeletionProgress | StoreError, policy: str) -> None:
        self.api, self.root, self.events = FakeApi(), Root(list(steps)), list[str]()
        self.config: StoreConfig | StoreView = CONFIG
        self.age = timedelta(minutes=1)
        monkeypatch.setattr(data_deletion, "RootDeletion", self._open)
        recorder = EventRecorder(lambda *_, reason, **__: self.events.append(reason))
        observer: Any = SimpleNamespace(
            children=self._children, store=SimpleNamespace(config=self._config, reader=None, calls=StoreCalls())
        )
        self.deletion = DataDeletion(self.api, observer, recorder)
        metadata = {"namespace": OWNER.namespace, "labels": LABELS, "ownerReferences": OURS}
        self.api.put({"kind": "Deployment", "metadata": metadata | {"name": "chat"}, "spec": {"replicas": 2}})
        self.api.put({"kind": "Job", "metadata": metadata | {"name": "chat-v1"}, "spec": {}})
        spec = MINIMAL | {"store": MINIMAL["store"] | {"deletionPolicy": policy}}
        identity = {"name": OWNER.name, "namespace": OWNER.namespace, "uid": OWNER.uid, "finalizers": [FINALIZER]}
        self.api.put({"kind": "AuroraSpeculator", "metadata": identity, "spec": spec})

    def _open(self, *_: object, **__: object) -> Root:
        self.root.opened += 1
        return self.root

    async def _config(self, *_: object) -> StoreConfig | StoreView:
        return self.config

    async def _children(self, owner: Owner) -> dict[tuple[str, str], Object]:
        return {key: obj for key, obj in self.api.objects.items() if key[0] != "AuroraSpeculator"}

    @property
    def stored(self) -> Object:
        return self.api.objects["AuroraSpeculator", OWNER.name]

    @property
    def held(self) -> bool:
        return FINALIZER in self.stored["metadata"]["finalizers"]

    async def advance(self) -> float:
        deleted = {"deletionTimestamp": (datetime.now(UTC) - self.age).isoformat()}
        return await self.deletion.advance({**self.stored, "metadata": self.stored["metadata"] | deleted})

    async def run(self) -> None:
        for _ in range(20):
            if not self.held:
                return
            await self.advance()
        raise AssertionError("the finalizer stays")


async def test_workloads_go_first_then_objects_in_steps_then_the_finalizer(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [DeletionProgress(5), DeletionProgress(9), DeletionProgress(12, done=True)]
    scene = Scene(monkeypatch, *steps, policy="Delete")
    await scene.run()
    assert scene.api.objects["Deployment", "chat"]["spec"]["replicas"] == 0
    assert ("Job", "chat-v1") not in scene.api.objects
    assert names_of(scene.api.calls, "delete") == ["Job chat-v1"], "the operator may not delete Deployments"
    assert (scene.root.steps, scene.root.opened, scene.events) == ([], 1, ["DataDeleted"])


async def test_pods_are_waited_for_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, DeletionProgress(done=True), policy="Delete")
    await scene.advance()
    owners = [{"kind": "ReplicaSet", "name": "chat-1a", "uid": "u", "controller": True}]
    metadata = {"name": "chat-0", "namespace": OWNER.namespace, "labels": LABELS, "ownerReferences": owners}
    scene.api.put({"kind": "Pod", "metadata": metadata, "status": {"phase": "Running"}})
    monkeypatch.setattr(data_deletion, "is_own_pod", lambda *_: True)
    assert await scene.advance() == BUSY_DELAY_SECONDS
    assert scene.root.opened == 0
    scene.age = timedelta(minutes=11)
    await scene.run()
    assert scene.events == ["DataDeleted"]


async def test_a_store_that_fails_is_reported_with_the_way_out_and_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(
        monkeypatch, StoreError("no route"), StoreError("x" * 2000), DeletionProgress(done=True), policy="Delete"
    )
    await scene.advance()
    while await scene.advance() != RETRY_DELAY_SECONDS:
        pass
    (ready,) = [one for one in scene.stored["status"]["conditions"] if one["type"] == "Ready"]
    assert "no route" in ready["message"]
    assert "kubectl patch auroraspeculator chat" in ready["message"]
    await scene.run()
    assert scene.events == ["DataDeleted"]
    assert scene.root.opened == 3


async def test_a_root_of_another_speculator_and_a_lock_end_the_deletion(monkeypatch: pytest.MonkeyPatch) -> None:
    for progress, event in ((DeletionProgress(done=True, kept="it is"), "DataKept"),
                            (DeletionProgress(done=True, remains="a lock"), "DataMayRemain")):  # fmt: skip
        scene = Scene(monkeypatch, progress, policy="Delete")
        await scene.run()
        assert scene.events == [event]


async def test_without_the_stores_keys_the_objects_are_kept_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, policy="Delete")
    scene.config = StoreView(reason="SecretMissing", error="create the Secret")
    for _ in range(4):
        await scene.advance()
    assert scene.held
    scene.age = timedelta(minutes=6)
    await scene.advance()
    assert (scene.held, scene.root.opened) == (False, 0)

"""One speculator with the real reconciler, observer, planner and store reader, over counting fakes in virtual time.

Nothing happens but what a test changes, so the calls that are counted are those of looks.
"""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator import reconciler as reconciler_module
from aurora_operator.act.authority import Authority
from aurora_operator.children.metadata import (
    COMMON_LABELS,
    INFERENCE,
    JOB_LABEL,
    TEMPLATE_HASH_LABEL,
    VALIDATOR,
    keys_name,
    selector,
)
from aurora_operator.children.pod_template import store_settings
from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.fleet import Fleet
from aurora_operator.kubernetes_api import JOB, SECRET, SPECULATOR, WATCHED, Object, Resource
from aurora_operator.observe import observer as observer_module
from aurora_operator.observe.cluster_cache import ClusterCache, Scope
from aurora_operator.observe.store import store_access as store_access_module
from aurora_operator.observe.store import store_reader
from aurora_operator.observe.store.signed_records import RecordKeys
from aurora_operator.reconciler import Reconciler
from aurora_protocol.agent_api import AgentState
from aurora_protocol.errors import AgentUnreachable
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.signatures import KeyName
from aurora_protocol.training_records import TrainerStatus
from aurora_store import ObjectStore, Registry, StoreConfig
from aurora_store.errors import ObjectExists, ObjectMissing, StoreUnsupported
from aurora_store.objects import MAX_LISTED_OBJECTS, MAX_RECORD_BYTES, ObjectInfo
from aurora_store.policy.store_policy import StorePolicy
from tests.unit.operator.worlds import (
    CONFIG,
    MINIMAL,
    NOW,
    OWNER,
    agent,
    lineage,
    registration,
    trainer_record,
)

OURS = [{"uid": OWNER.uid, "controller": True}]
PROBE_CALLS = 4
"""A probe of the store creates, overwrites, reads and deletes."""


@dataclass
class Clock:
    """Monotonic seconds that a test moves on, and the time of day."""

    seconds: float = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    @property
    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    def datetime_type(self) -> type[datetime]:
        """``datetime`` as a module sees it, with the time of this clock."""
        clock = self

        class Moved(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return clock.now

        return Moved


class Bucket(ObjectStore):
    """Objects in a dictionary. Counts the requests of the operator, and not those of a test in :meth:`uncounted`."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.data: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()
        self.counting = True
        self.keeps_create_once = True

    def put(self, key: str, data: bytes) -> None:
        self._count("put")
        self.data[key] = data

    def create(self, key: str, data: bytes) -> None:
        self._count("put")
        if self.data.setdefault(key, data) != data:
            raise ObjectExists(key)

    def get(self, key: str, sha256: str | None = None, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
        self._count("get")
        if key not in self.data:
            raise ObjectMissing(key)
        return self.data[key]

    def list_objects(self, prefix: str, *, after: str = "", limit: int = MAX_LISTED_OBJECTS) -> Iterator[ObjectInfo]:
        self._count("list")
        keys = sorted(key for key in self.data if key.startswith(prefix) and key > after)
        return iter([ObjectInfo(key, len(self.data[key]), NOW) for key in keys])

    def probe(self) -> None:
        self._count("probe", PROBE_CALLS)
        if not self.keeps_create_once:
            raise StoreUnsupported("the store does not keep create-once")

    def ensure_bucket(self) -> None:
        """A dictionary is there."""

    def _count(self, call: str, requests: int = 1) -> None:
        if self.counting:
            self.counts[call] += requests


@dataclass
class Cluster:
    """A fake API server. Its Deployments are ready at once, and nobody makes pods."""

    cache: ClusterCache = field(default_factory=lambda: ClusterCache(resource.kind for resource in WATCHED))
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    refused: dict[tuple[str, str], KubernetesError] = field(default_factory=dict)
    """Kind and name of what can be neither read nor written, with the reason."""
    counts: Counter[str] = field(default_factory=Counter)
    revision: int = 100

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        self._count("get", resource.kind, name)
        if (resource.kind, name) not in self.objects:
            raise NotFound(name, 404)
        return self.objects[resource.kind, name]

    def list(self, resource: Resource, namespace: str, labels: str = "") -> Sequence[Object]:
        self.counts[f"list {resource.kind}"] += 1
        return [obj for (kind, _), obj in self.objects.items() if kind == resource.kind]

    def create(self, obj: Object) -> Object:
        kind, name = obj["kind"], obj["metadata"]["name"]
        self._count("create", kind, name)
        if (kind, name) in self.objects:
            raise Conflict(f"{kind} {name} exists", 409)
        return self.put(obj)

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        kind, name = obj["kind"], obj["metadata"]["name"]
        self._count("apply", kind, name)
        stored = self.objects[kind, name]
        if subresource:
            return self.put({**stored, "status": obj["status"]})
        return self.put({**stored, **obj, "metadata": {**stored["metadata"], **obj["metadata"]}}, changed=True)

    def merge_status(self, obj: Object, changes: Mapping[str, Any]) -> Object:
        kind, name = obj["kind"], obj["metadata"]["name"]
        self._count("apply", kind, name)
        stored = self.objects[kind, name]
        return self.put({**stored, "status": {**stored.get("status", {}), **changes}})

    def set_managed_fields(self, obj: Object, managed_fields: Sequence[Object]) -> Object:
        self._count("apply", obj["kind"], obj["metadata"]["name"])
        return obj

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self._count("delete", resource.kind, name)
        self.remove(resource.kind, name)

    def remove(self, kind: str, name: str) -> None:
        """The object is gone, and the informers say so."""
        gone = self.objects.pop((kind, name), None)
        if gone is not None and kind in self.cache.counts:
            self.revision += 1
            gone["metadata"]["resourceVersion"] = str(self.revision)
            self.cache.delete(Scope(kind), gone)

    def put(self, obj: Object, *, changed: bool = False) -> Object:
        """Store ``obj`` as the API server and the controllers would. ``changed``: with a new generation."""
        self.revision += 1
        kind, name = obj["kind"], obj["metadata"]["name"]
        metadata = {"uid": f"uid of {name}", "generation": 1, **obj["metadata"], "resourceVersion": str(self.revision)}
        metadata["generation"] += changed
        stored = {**obj, "metadata": metadata}
        if texts := stored.pop("stringData", None):
            stored["data"] = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
        if kind == "Deployment":
            count, seen = stored["spec"].get("replicas", 1), metadata["generation"]
            counts = {"replicas": count, "updatedReplicas": count, "readyReplicas": count}
            stored["status"] = {"observedGeneration": seen, **(counts if count else {})}
        self.objects[kind, name] = stored
        self.cache.put(stored)
        return stored

    def _count(self, verb: str, kind: str, name: str) -> None:
        self.counts[f"{verb} {kind}"] += 1
        if (kind, name) in self.refused:
            raise self.refused[kind, name]


@dataclass(frozen=True)
class Cost:
    """What a time in one state cost."""

    minutes: int
    all_looks: int
    cluster: Counter[str]
    bucket: Counter[str]

    @property
    def looks(self) -> float:
        """Reconciles in a minute."""
        return self.all_looks / self.minutes

    @property
    def api_calls(self) -> float:
        """Calls of the API server in a minute."""
        return self.cluster.total() / self.minutes

    @property
    def store_requests(self) -> float:
        """Requests to the store in a minute."""
        return self.bucket.total() / self.minutes


class RestRig:
    """A speculator that serves version 0 on two replicas, with a trainer that waits for traces."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **spec: Any) -> None:
        root = store_settings(OWNER, SpeculatorSpec.model_validate(MINIMAL)).root
        self.clock, self.bucket, self.cluster = Clock(), Bucket(StoreConfig("bucket", root)), Cluster()
        self._keep_time(monkeypatch)
        monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
        monkeypatch.setattr(store_reader, "ObjectStore", lambda config, **_: self.bucket)
        self.spec = MINIMAL | {"serving": {"replicas": 2}} | spec
        self.annotations: dict[str, str] = {}
        self.answers: dict[str, AgentState] = {}
        self._write_speculator()
        self.cluster.put(secret("s3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
        for number in range(self.spec["serving"].get("replicas", 1)):
            self.add_pod(f"chat-{number}")
        with self.uncounted():
            self.registry.create_lineage(lineage())
            self.registry.register(registration(0))
        self.train()
        self._start()

    # what a test changes ---------------------------------------------------------------------------------------------

    @property
    def registry(self) -> Registry:
        return Registry(self.bucket)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """A block whose requests to the store are not the operator's."""
        self.bucket.counting = False
        yield
        self.bucket.counting = True

    def train(self, **more: Any) -> None:
        """Write the trainer's record, as it is in the store from now on."""
        given = {"held_out_requests": 1000, "updated": self.clock.now} | more
        record: TrainerStatus = trainer_record(**given)
        with self.uncounted():
            self.registry.put_trainer_status(record)

    def register(self, version: int) -> None:
        with self.uncounted():
            self.registry.register(registration(version))

    def pass_measurement(self, evidence: Evidence) -> None:
        """Write evidence with the signature of this speculator's validator."""
        keys = RecordKeys.of(OWNER, self.cluster.objects["Secret", keys_name(OWNER)])
        assert keys is not None
        with self.uncounted():
            Registry(self.bucket, {KeyName.EVIDENCE: keys.evidence}).put_evidence(evidence)

    def change_spec(self, **spec: Any) -> None:
        self.spec |= spec
        self._write_speculator(changed=True)

    def set_status(self, **parts: Any) -> None:
        """Change parts of the stored status."""
        stored = self.cluster.objects[SPECULATOR.kind, OWNER.name]
        self.cluster.put({**stored, "status": stored["status"] | parts})

    def annotate(self, **annotations: str) -> None:
        """``abort="1"`` stands for ``aurora.dev/abort=1``."""
        self.annotations |= {f"aurora.dev/{name}": value for name, value in annotations.items()}
        self._write_speculator()

    def add_pod(self, name: str, status: Object | None = None, component: str = INFERENCE, **labels: str) -> None:
        """A pod that serves version 0, or one in the state ``status``."""
        ip = f"10.0.0.{len(self.cluster.objects)}"
        up = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]
        serving = {"phase": "Running", "podIP": ip, "conditions": up}
        made = selector(OWNER, component) | COMMON_LABELS | {TEMPLATE_HASH_LABEL: "1a"} | labels
        kind, controller = ("Job", labels[JOB_LABEL]) if JOB_LABEL in labels else ("ReplicaSet", f"{OWNER.name}-1a")
        uid = self.job()["metadata"]["uid"] if kind == "Job" else f"uid of {controller}"
        owners = [{"kind": kind, "name": controller, "uid": uid, "controller": True}]
        created = {"creationTimestamp": self.clock.now.isoformat()}
        metadata = {"name": name, "namespace": OWNER.namespace, "labels": made, "ownerReferences": owners, **created}
        self.cluster.put({"kind": "Pod", "metadata": metadata, "spec": {}, "status": status or serving})
        if status is None:
            self.answers[ip] = agent(name, 0)

    def job(self, **changes: Any) -> Object:
        """Change the one validation Job."""
        (found,) = [obj for (kind, _), obj in self.cluster.objects.items() if kind == JOB.kind]
        return self.cluster.put({**found, **changes})

    def add_job_pod(self, status: Object) -> None:
        self.add_pod("validator", status, VALIDATOR, **{JOB_LABEL: self.job()["metadata"]["name"]})

    # turning the loop ------------------------------------------------------------------------------------------------

    async def run(self, seconds: float, each: Callable[[], None] = lambda: None) -> list[float]:
        """Reconcile as the loop does while nothing wakes it. Returns the delays."""
        delays, end = list[float](), self.clock.seconds + seconds
        while self.clock.seconds < end:
            each()
            delays.append(await self.reconciler.reconcile(woken=False))
            self.clock.seconds += delays[-1]
        return delays

    async def cost(self, minutes: int, each: Callable[[], None] = lambda: None) -> Cost:
        """What the next ``minutes`` cost."""
        self.cluster.counts.clear()
        self.bucket.counts.clear()
        delays = await self.run(60 * minutes, each)
        return Cost(minutes, len(delays), Counter(self.cluster.counts), Counter(self.bucket.counts))

    @property
    def status(self) -> Object:
        found: Object = self.cluster.objects[SPECULATOR.kind, OWNER.name].get("status", {})
        return found

    def reason(self, condition: str) -> str:
        reasons = {one["type"]: one.get("reason", "") for one in self.status.get("conditions", ())}
        return str(reasons.get(condition, ""))

    # -----------------------------------------------------------------------------------------------------------------

    async def state(self, ip: str, token: str) -> AgentState:
        """An agent's answer."""
        if ip not in self.answers:
            raise AgentUnreachable(ip)
        return self.answers[ip]

    def _write_speculator(self, *, changed: bool = False) -> None:
        before = self.cluster.objects.get((SPECULATOR.kind, OWNER.name), {})
        identity = {"name": OWNER.name, "namespace": OWNER.namespace, "uid": OWNER.uid}
        metadata = {"generation": OWNER.generation, **before.get("metadata", {}), **identity}
        body = {"kind": SPECULATOR.kind, "spec": self.spec, "status": before.get("status", {})}
        self.cluster.put({**body, "metadata": metadata | {"annotations": dict(self.annotations)}}, changed=changed)

    def _keep_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reconciler_module, "time", self.clock)
        for module in (reconciler_module, observer_module, store_access_module):
            monkeypatch.setattr(module, "datetime", self.clock.datetime_type())

    def _start(self) -> None:
        api: Any = self.cluster
        agents: Any = self
        authority = Authority(api, CONFIG, lambda: None)
        self.reconciler = Reconciler(
            api, self.cluster.cache, agents, CONFIG, Fleet(), authority, (OWNER.namespace, OWNER.name)
        )
        observer = self.reconciler._observer
        observer.store._policy = StorePolicy()
        refused = self.reconciler._actor._children.refused
        for part in (observer._secrets, observer.store, refused):
            part._clock = self.clock.monotonic


def secret(name: str, *keys: str) -> Object:
    metadata = {"name": name, "namespace": OWNER.namespace}
    return {"kind": SECRET.kind, "metadata": metadata, "stringData": dict.fromkeys(keys, "made up")}


def foreign(kind: str, name: str) -> Object:
    """An object of another owner."""
    return {"kind": kind, "metadata": {"name": name, "namespace": OWNER.namespace}, "spec": {}}

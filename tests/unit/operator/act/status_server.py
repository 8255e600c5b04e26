"""A fake API server with the status of one speculator, for tests of who acts on the speculator."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aurora_api import KIND
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.act.authority import Authority
from aurora_operator.act.contest import Claim
from aurora_operator.children.owner import Owner
from aurora_operator.errors import Conflict, NotFound
from aurora_operator.kubernetes_api import Object, Resource
from aurora_operator.observe.stored_resource import owner_of, status_of
from tests.unit.operator.worlds import CONFIG, OWNER


@dataclass
class StatusServer:
    """Stores the status, and refuses a write over another resourceVersion. Records the writes."""

    status: dict[str, Any] = field(default_factory=dict)
    revision: int = 1
    uid: str = OWNER.uid
    exists: bool = True
    dropped: frozenset[str] = frozenset()
    """Fields of the status that the definition does not know."""
    faults: list[Exception] = field(default_factory=list)
    """What the next calls raise."""
    open: threading.Event = field(default_factory=threading.Event)
    """Until it is set, writes hang."""
    writes: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open.set()

    @property
    def stored(self) -> Object:
        metadata = {
            "namespace": OWNER.namespace,
            "name": OWNER.name,
            "uid": self.uid,
            "generation": 1,
            "resourceVersion": str(self.revision),
        }
        return {"kind": KIND, "metadata": metadata, "spec": {}, "status": dict(self.status)}

    @property
    def seen(self) -> tuple[Owner, SpeculatorStatus]:
        """What an informer delivers."""
        return owner_of(self.stored), status_of(self.stored)

    @property
    def operator(self) -> str:
        """The installation that the status names."""
        return str((self.status.get("operator") or {}).get("installation", ""))

    @property
    def challenge(self) -> str:
        """The installation that asks; empty when none does."""
        return str((self.status.get("operatorChallenge") or {}).get("installation", ""))

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        self._fail()
        if not self.exists:
            raise NotFound(name, 404)
        return self.stored

    def merge_status(self, obj: Object, changes: Mapping[str, Any]) -> Object:
        assert self.open.wait(30)
        self._fail()
        if not self.exists:
            raise NotFound(obj["metadata"]["name"], 404)
        if obj["metadata"]["resourceVersion"] != str(self.revision):
            raise Conflict("changed", 409)
        self.writes += [f"{'remove' if value is None else 'set'} {name}" for name, value in changes.items()]
        self.change(**{name: value for name, value in changes.items() if name not in self.dropped})
        return self.stored

    def change(self, **changes: Any) -> None:
        """Somebody sets or removes fields of the status."""
        kept = {name: value for name, value in (self.status | changes).items() if value is not None}
        if kept != self.status:
            self.status, self.revision = kept, self.revision + 1

    def create(self, obj: Object) -> Object:
        assert obj["kind"] == "Event"
        self._fail()
        self.events.append(f"{obj['type']} {obj['reason']}: {obj['message']}")
        return obj

    def _fail(self) -> None:
        if self.faults:
            raise self.faults.pop(0)


@dataclass
class Clock:
    """A monotonic clock that a test moves on."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Installation:
    """An installation that looks at the speculator when a test says so."""

    api: StatusServer
    clock: Clock
    authority: Authority

    async def look(self) -> Claim:
        """Claim as a reconcile does. An acting installation answers a challenge."""
        claim = await self.authority.claim(*self.api.seen)
        if claim is Claim.HOLD:
            self.authority.answer(self.api.stored, acts=True)
            await self.answered()
        return claim

    async def answered(self) -> None:
        """Wait until the answers that are under way are stored."""
        while under_way := [*self.authority._answers._under_way.values()]:
            for answer in under_way:
                await answer.task

    @property
    def wait_seconds(self) -> float:
        return self.authority.wait_seconds(OWNER.namespace, OWNER.name)


def installation(api: StatusServer, clock: Clock, namespace: str) -> Installation:
    config = replace(CONFIG, operator_namespace=namespace)
    return Installation(api, clock, Authority(api, config, lambda: None, clock))  # type: ignore[arg-type]


def names(namespace: str, version: str = "9") -> dict[str, str]:
    """A name in the status."""
    return {"installation": f"{namespace}/aurora-operator", "version": version}

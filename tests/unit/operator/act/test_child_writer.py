"""A child whose name belongs to another owner's object is reported and never touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from aurora_operator.act.child_writer import ChildWriter, WriteResult
from aurora_operator.children.access import new_keys
from aurora_operator.children.network import disruption_budget, services
from aurora_operator.errors import Conflict, NotFound
from aurora_operator.kubernetes_api import Object, Resource
from tests.unit.operator.worlds import OWNER

(SERVICE,) = services(OWNER)
BUDGET = disruption_budget(OWNER)
KEYS = new_keys(OWNER)
JOB: Object = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "team"}}


@dataclass
class FakeApi:
    """Stores objects by kind and name, and records every write."""

    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        try:
            return self.objects[resource.kind, name]
        except KeyError:
            raise NotFound(f"{resource.kind} {name}", 404) from None

    def list(self, resource: Resource, namespace: str, labels: str = "") -> Sequence[Object]:
        raise NotImplementedError

    def delete(self, resource: Resource, namespace: str, name: str, uid: str = "") -> None:
        raise NotImplementedError

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        self.writes.append(f"{obj['kind']} {obj['metadata']['name']}")
        return self._store(obj)

    def create(self, obj: Object) -> Object:
        if (obj["kind"], obj["metadata"]["name"]) in self.objects:
            raise Conflict("exists", 409)
        return self.apply(obj)

    def _store(self, obj: Object) -> Object:
        stored = {**obj, "metadata": {**obj["metadata"], "uid": "u", "resourceVersion": "1"}}
        self.objects[obj["kind"], obj["metadata"]["name"]] = stored
        return stored

    def owned(self) -> dict[tuple[str, str], Object]:
        """The objects that the observer would pass on."""
        return {key: obj for key, obj in self.objects.items() if OWNER.owns(obj)}

    def add_foreign(self, kind: str, name: str, *references: dict[str, str]) -> None:
        metadata: dict[str, Any] = {"name": name, "ownerReferences": [*references]} if references else {"name": name}
        self.objects[kind, name] = {"kind": kind, "metadata": metadata}


async def write(api: FakeApi, writer: ChildWriter | None = None) -> WriteResult:
    writer = writer or ChildWriter(api)
    return await writer.write(OWNER, KEYS, (SERVICE, BUDGET), api.owned())


@pytest.mark.parametrize("references", [(), ({"uid": "another"},)], ids=["no owner", "another owner"])
async def test_a_foreign_object_is_reported_and_the_other_children_are_applied(
    references: tuple[dict[str, str], ...],
) -> None:
    api = FakeApi()
    api.add_foreign("Service", "chat", *references)
    result = await write(api)
    assert result == WriteResult(name_taken=("Service chat",))
    assert api.writes == ["Secret chat-keys", "PodDisruptionBudget chat"]


async def test_a_child_is_created_once_its_name_is_free() -> None:
    api = FakeApi()
    writer = ChildWriter(api)
    api.add_foreign("Service", "chat")
    await write(api, writer)
    del api.objects["Service", "chat"]
    api.writes.clear()
    assert await write(api, writer) == WriteResult()
    assert api.writes == ["Service chat"]


async def test_a_child_that_another_owner_replaced_is_left_alone() -> None:
    api = FakeApi()
    writer = ChildWriter(api)
    await write(api, writer)
    api.add_foreign("Service", "chat", {"uid": "another"})
    api.writes.clear()
    assert await write(api, writer) == WriteResult(name_taken=("Service chat",))
    assert api.writes == []


async def test_a_foreign_secret_is_not_taken_for_the_keys() -> None:
    api = FakeApi()
    api.add_foreign("Secret", "chat-keys")
    result = await write(api)
    assert result == WriteResult(name_taken=("Secret chat-keys",))
    assert api.writes == ["Service chat", "PodDisruptionBudget chat"]


async def test_our_own_keys_are_never_created_twice() -> None:
    api = FakeApi()
    assert await write(api) == WriteResult()
    api.writes.clear()
    assert await write(api) == WriteResult(), "the Secret exists and is ours"
    assert "Secret chat-keys" not in api.writes


async def test_a_foreign_job_is_reported_and_our_own_is_not() -> None:
    api = FakeApi()
    api.add_foreign("Job", "j")
    assert await ChildWriter(api).create_job(OWNER, JOB) == WriteResult(name_taken=("Job j",))
    api.add_foreign("Job", "j", {"uid": OWNER.uid})
    assert await ChildWriter(api).create_job(OWNER, JOB) == WriteResult()

"""A fake API server in memory, for faults and counts that a real one cannot be made to show.

It checks uids and resourceVersions as the API server does. Server-side apply replaces what is given and keeps the rest.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aurora_operator.errors import Conflict, KubernetesError, NotFound
from aurora_operator.kubernetes_api import KubernetesApi, Object, Resource

READS = ("get", "list")


@dataclass
class FakeApi(KubernetesApi):
    """Objects by kind and name, in one namespace. Nobody acts on them but the operator."""

    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    """``<verb> <Kind> <name>``, lists without a name."""
    faults: dict[str, Exception] = field(default_factory=dict)
    """Call, or its beginning, as in :attr:`calls` -> what it raises."""
    before: dict[str, Callable[[], object]] = field(default_factory=dict)
    """Call, or its beginning -> what somebody else does just before the next such call."""
    revision: int = 100

    @property
    def writes(self) -> list[str]:
        return [call for call in self.calls if call.split()[0] not in READS]

    def put(self, obj: Object) -> Object:
        """Store ``obj`` as the API server would, without a call. A changed spec gets a new generation."""
        self.revision += 1
        key = (obj["kind"], obj["metadata"]["name"])
        before = self.objects.get(key)
        generation = obj["metadata"].get("generation", 1)
        if before is not None:
            generation = before["metadata"]["generation"] + int(before.get("spec") != obj.get("spec"))
        identity = {"uid": f"uid of {key[1]}"} if before is None else {"uid": before["metadata"]["uid"]}
        metadata = {**identity, **obj["metadata"], "generation": generation, "resourceVersion": str(self.revision)}
        stored = {**obj, "metadata": metadata}
        if texts := stored.pop("stringData", None):
            stored["data"] = {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}
        self.objects[key] = stored
        return stored

    def remove(self, kind: str, name: str) -> None:
        """Delete an object without a call."""
        del self.objects[kind, name]

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        self._record(f"get {resource.kind} {name}")
        try:
            return self.objects[resource.kind, name]
        except KeyError:
            raise NotFound(f"{resource.kind} {name} not found", 404) from None

    async def list(self, resource: Resource, namespace: str, labels: str = "") -> list[Object]:
        self._record(f"list {resource.kind}")
        wanted = dict(pair.split("=") for pair in labels.split(",") if pair)
        found = [obj for (kind, _), obj in self.objects.items() if kind == resource.kind]
        return [obj for obj in found if wanted.items() <= (obj["metadata"].get("labels") or {}).items()]

    async def create(self, obj: Object) -> Object:
        self._record(f"create {_title(obj)}")
        if (obj["kind"], obj["metadata"]["name"]) in self.objects:
            raise Conflict(f"{_title(obj)} exists", 409)
        return self.put(obj)

    async def apply(self, obj: Object, *, subresource: str = "") -> Object:
        self._record(f"apply {_title(obj)}" + (f"/{subresource}" if subresource else ""))
        current = self.objects.get((obj["kind"], obj["metadata"]["name"]))
        self._check(current, obj["metadata"])
        if current is None:
            return self.put(obj)
        if subresource:
            return self.put({**current, subresource: obj[subresource]})
        return self.put({**current, **obj, "metadata": {**current["metadata"], **obj["metadata"]}})

    async def patch(self, obj: Object, changes: Object, *, subresource: str = "") -> Object:
        self._record(f"patch {_title(obj)}" + (f"/{subresource}" if subresource else ""))
        current = self.objects.get((obj["kind"], obj["metadata"]["name"]))
        if current is None:
            raise NotFound(f"{_title(obj)} not found", 404)
        self._check(current, {"resourceVersion": obj["metadata"]["resourceVersion"]})
        stored = self.put(_merged(current, changes))
        if "deletionTimestamp" in stored["metadata"] and not stored["metadata"].get("finalizers"):
            self.remove(obj["kind"], obj["metadata"]["name"])
        return stored

    async def delete(self, obj: Object) -> None:
        self._record(f"delete {_title(obj)}")
        current = self.objects.get((obj["kind"], obj["metadata"]["name"]))
        if current is not None:
            self._check(current, {"uid": obj["metadata"]["uid"]})
            del self.objects[obj["kind"], obj["metadata"]["name"]]

    def _record(self, call: str) -> None:
        for beginning in [each for each in self.before if call.startswith(each)]:
            self.before.pop(beginning)()
        self.calls.append(call)
        for beginning, fault in self.faults.items():
            if call.startswith(beginning):
                raise fault

    def _check(self, current: Object | None, given: Mapping[str, Any]) -> None:
        if current is None:
            if "uid" in given:
                raise Conflict("no such object, and a uid is given", 409)
            return
        for field_name, reason in (("uid", "another uid"), ("resourceVersion", "the object has been modified")):
            if given.get(field_name, current["metadata"][field_name]) != current["metadata"][field_name]:
                raise Conflict(reason, 409)


UNAVAILABLE = KubernetesError("no connection")
DENIED = KubernetesError("denied by a webhook", 403)


def _merged(current: Object, changes: Mapping[str, Any]) -> Object:
    merged = dict(current)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            merged[key] = _merged(merged.get(key) or {}, value)
        else:
            merged[key] = value
    return merged


def _title(obj: Object) -> str:
    return f"{obj['kind']} {obj['metadata']['name']}"


def names_of(calls: Sequence[str], verb: str) -> list[str]:
    """The ``<Kind> <name>`` of the calls with this verb."""
    return [call.partition(" ")[2] for call in calls if call.split()[0] == verb]

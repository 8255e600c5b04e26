"""A stand-in for the API server with speculators as a real operator's planner writes them.

The fake keeps objects, honours resourceVersion, merges patches (RFC 7386), and fails where a test asks for it. It
checks neither admission nor RBAC: the integration tests do that with the real API server.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from typer.testing import CliRunner, Result

from aurora_api import API_VERSION, KIND
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_cli.cluster.kubeconfig import Access, Connection
from aurora_cli.cluster.kubernetes_api import Object, speculators_path
from aurora_cli.command_line import Session
from aurora_cli.errors import ClusterError, Conflict, NotFound
from aurora_cli.main import app
from aurora_cli.speculator import Speculator
from tests.unit.operator.worlds import MINIMAL, OWNER

LISTED = ("auroraspeculators", "pods", "jobs", "events")
CREATED = "2025-12-31T22:00:00Z"


def resource(
    status: SpeculatorStatus | None = None,
    *,
    name: str = OWNER.name,
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> Object:
    """A speculator as the API server returns it. Without ``status``, no operator has acted on it."""
    metadata: Object = {
        "name": name,
        "namespace": OWNER.namespace,
        "uid": OWNER.uid,
        "generation": OWNER.generation,
        "resourceVersion": "10",
        "creationTimestamp": CREATED,
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    found: Object = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {**MINIMAL, **spec}}
    if status is not None:
        found["status"] = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return found


def speculator(status: SpeculatorStatus | None = None, **more: Any) -> Speculator:
    """The same as the program reads it."""
    return Speculator.of(resource(status, **more))


@dataclass
class FakeApiServer:
    """Objects by path. ``error`` fails every call."""

    objects: dict[str, Object] = field(default_factory=dict)
    error: ClusterError | None = None
    errors: dict[str, ClusterError] = field(default_factory=dict)
    """By the end of a path."""
    meanwhile: list[Object] = field(default_factory=list)
    """What somebody else writes to the speculator ``chat`` between a read and a write: one patch before each write."""
    patches: list[tuple[str, Object, bool]] = field(default_factory=list)
    """Path, patch and whether it was a dry run."""
    calls: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, *resources: Object) -> FakeApiServer:
        """A server with these speculators."""
        paths = {speculators_path(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in resources}
        return cls(dict(paths))

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        self._call(path)
        place, _, plural = path.rpartition("/")
        if plural in LISTED:
            everywhere = "/namespaces/" not in path
            inside = f"{place}/namespaces/" if everywhere else f"{path}/"
            found = [one for key, one in self.objects.items() if key.startswith(inside) and f"/{plural}/" in key]
            return {"items": copy.deepcopy(found)}
        if path not in self.objects:
            raise NotFound(f"{path} not found")
        return copy.deepcopy(self.objects[path])

    def merge_patch(self, path: str, patch: Object, *, dry_run: bool) -> Object:
        if self.meanwhile:
            self.change("chat", self.meanwhile.pop(0))
        self._call(path)
        stored = self.objects[path]
        if patch["metadata"]["resourceVersion"] != stored["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified; please apply your changes to the latest version")
        self.patches.append((path, patch, dry_run))
        patched: Object = merged(copy.deepcopy(stored), patch)
        patched["metadata"]["resourceVersion"] = str(int(stored["metadata"]["resourceVersion"]) + 1)
        if not dry_run:
            self.objects[path] = patched
        return patched

    def _call(self, path: str) -> None:
        self.calls.append(path)
        failure = next((error for end, error in self.errors.items() if path.endswith(end)), self.error)
        if failure is not None:
            raise failure

    def change(self, name: str, patch: Object) -> None:
        """Somebody else changes a speculator."""
        stored = self.objects[speculators_path(OWNER.namespace, name)]
        version = int(stored["metadata"]["resourceVersion"]) + 1
        merged(stored, patch)
        stored["metadata"]["resourceVersion"] = str(version)

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> Result:
        """Run the program against this server, in the namespace of the tests' speculators."""

        def connect(access: Access) -> Connection:
            return Connection(self, access.namespace or OWNER.namespace, access.kubectl_flags())

        return CliRunner().invoke(app, list(arguments), obj=Session(connect=connect), env=env)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386, in place."""
    if not isinstance(patch, dict):
        return patch
    found = target if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found

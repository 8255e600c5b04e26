"""A stand-in for the API server, which the program reaches over HTTP with a kubeconfig of its own.

The fake keeps objects, merges patches (RFC 7386), and refuses where a test asks for it. It checks neither admission nor
RBAC: the integration tests do that with the real API server.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from typer.testing import CliRunner, Result

from aurora_api import API_VERSION, KIND
from aurora_api.v1alpha1.status import NO_STATUS, SpeculatorStatus
from aurora_cli.main import app
from aurora_cli.speculator import Speculator
from tests.unit.operator.worlds import MINIMAL, OWNER

Object = dict[str, Any]
CREATED = "2025-12-31T22:00:00Z"


def resource(
    status: SpeculatorStatus | None = None,
    *,
    name: str = OWNER.name,
    annotations: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    **spec: Any,
) -> Object:
    """A speculator as the API server returns it. Without ``status``, no operator has acted on it."""
    own: Object = {
        "name": name,
        "namespace": OWNER.namespace,
        "uid": OWNER.uid,
        "generation": OWNER.generation,
        "creationTimestamp": CREATED,
        **(metadata or {}),
    }
    if annotations:
        own["annotations"] = dict(annotations)
    shown = NO_STATUS if status is None else status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": own, "spec": {**MINIMAL, **spec}, "status": shown}


def speculator(status: SpeculatorStatus | None = None, **more: Any) -> Speculator:
    """The same as the program reads it."""
    return Speculator.of(resource(status, **more))


def speculators_path(namespace: str, name: str) -> str:
    return f"/apis/{API_VERSION}/namespaces/{namespace}/auroraspeculators/{name}"


@dataclass
class FakeApiServer:
    """Objects by path, at ``url``."""

    url: str = ""
    kubeconfig: str = ""
    objects: dict[str, Object] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    """HTTP status by a part of the path."""
    calls: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and query, in their order."""

    def add(self, *resources: Object) -> FakeApiServer:
        """Keep these speculators."""
        for one in resources:
            self.objects[speculators_path(one["metadata"]["namespace"], one["metadata"]["name"])] = one
        return self

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Object]:
        self.calls.append((method, path, query))
        for part, status in self.refusals.items():
            if part in path:
                return status, {"kind": "Status", "message": f"refused {path}"}
        if path in self.objects:
            found = copy.deepcopy(self.objects[path])
            if method == "PATCH":
                found = merged(found, body)
                if "dryRun" not in query:
                    self.objects[path] = found
            return 200, found
        place, _, plural = path.rpartition("/")
        kept = (one for key, one in self.objects.items() if f"/{plural}/" in key and key.startswith(place))
        if plural in ("auroraspeculators", "pods"):
            return 200, {"items": copy.deepcopy(list(kept))}
        return 404, {"kind": "Status", "message": f"{path} not found", "details": {"name": path}}

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, stdin: str | None = None) -> Result:
        """Run the program against this server, in the namespace of the tests' speculators."""
        environment = {"KUBECONFIG": self.kubeconfig, **(env or {})}
        return CliRunner().invoke(app, list(arguments), env=environment, input=stdin)


@contextmanager
def fake_api_server(folder: Path) -> Iterator[FakeApiServer]:
    """A server that runs, and a kubeconfig for it in ``folder``."""
    fake = FakeApiServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            address = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(address.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = fake.answer(self.command, address.path, query, json.loads(body or "null"))
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(data)

        def do_PATCH(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        fake.kubeconfig = kubeconfig(folder, fake.url, namespace=OWNER.namespace)
        yield fake
        server.shutdown()
        thread.join()


def kubeconfig(folder: Path, url: str, *, namespace: str = "", current: str = "here", name: str = "kubeconfig") -> str:
    """Write a kubeconfig with the contexts ``here`` and ``there``."""
    own = {"cluster": "one", "user": "one"} | ({"namespace": namespace} if namespace else {})
    config = {
        "current-context": current,
        "clusters": [{"name": "one", "cluster": {"server": url}}],
        "users": [{"name": "one", "user": {"token": "secret-token"}}],
        "contexts": [
            {"name": "here", "context": own},
            {"name": "there", "context": own | {"namespace": "elsewhere"}},
        ],
    }
    path = folder / name
    path.write_text(yaml.safe_dump(config))
    return str(path)


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


@pytest.fixture(name="server")
def api_server_fixture(tmp_path: Path) -> Iterator[FakeApiServer]:
    """An API server without objects."""
    with fake_api_server(tmp_path) as server:
        yield server

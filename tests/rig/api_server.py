"""A real API server with etcd and a few controllers, on this machine's loopback. There are no nodes and no pods.

The server answers admission, RBAC, watches and server-side apply as in a cluster, starts within seconds, and needs no
network namespace. Use :class:`tests.cluster.cluster.Cluster` when pods must run.

Invariant: when the context ends, the server's processes and its data are gone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes.config import new_client_from_config

from tests.cluster.command import NotReadyError, run
from tests.cluster.local.build import binaries

START_TIMEOUT_SECONDS = 120.0
STOP_TIMEOUT_SECONDS = 15.0
PORTS = range(10_000, 20_000)
"""Below the kernel's ephemeral range, so that no outgoing connection takes a port while a server restarts."""
ADMIN = "admin"
_ADMIN_TOKEN = "loopback-admin"  # noqa: S105  (guards nothing: the server listens on the loopback)


@dataclass(frozen=True)
class ApiServer:
    """A running API server. ``kubeconfig`` holds an administrator's access."""

    url: str
    directory: Path
    _commands: dict[str, Sequence[str | Path]] = field(default_factory=dict)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def stop(self, name: str) -> None:
        """Kill ``etcd``, ``kube-apiserver`` or ``kube-controller-manager``. Its data stay."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(STOP_TIMEOUT_SECONDS)

    def stop_all(self) -> None:
        for name in [*self._running]:
            self.stop(name)

    def start(self, name: str) -> None:
        """Start a process that was stopped, and wait until it is ready if it is the API server."""
        with (self.directory / f"{name}.log").open("ab") as log:
            environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory)}
            words = [str(word) for word in self._commands[name]]
            self._running[name] = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)
        if name == "kube-apiserver":
            _wait_until_ready(self, self._running[name])

    def back_up(self, folder: Path) -> None:
        """Copy etcd's data to ``folder``. Both servers stop meanwhile."""
        self._with_stopped_servers(lambda: shutil.copytree(self.directory / "etcd", folder))

    def restore(self, folder: Path) -> None:
        """Put a backup back, as after the loss of a disk: resourceVersions go back, too."""
        self._with_stopped_servers(lambda: _replace(self.directory / "etcd", folder))

    def compact(self) -> None:
        """Drop etcd's history up to now. An API server that starts later answers HTTP 410 to watches from before."""
        revision = int(json.loads(self.kubectl("get", "--raw", "/api/v1/namespaces"))["metadata"]["resourceVersion"])
        port = next(word for word in map(str, self._commands["etcd"]) if word.startswith("--listen-client-urls="))
        body = json.dumps({"revision": revision, "physical": True}).encode()
        request = urllib.request.Request(f"{port.partition('=')[2]}/v3/kv/compaction", body)  # noqa: S310 - the loopback
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - the loopback
            pass

    def _with_stopped_servers(self, work: Callable[[], object]) -> None:
        for name in ("kube-apiserver", "etcd"):
            self.stop(name)
        work()
        for name in ("etcd", "kube-apiserver"):
            self.start(name)

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Run kubectl and return its stdout. A failure raises ``CommandError``."""
        return self._run("kubectl", *arguments, stdin=stdin)

    def helm(self, *arguments: str | Path) -> str:
        """Run helm and return its stdout. A failure raises ``CommandError``."""
        return self._run("helm", *arguments)

    def get(self, *arguments: str) -> Any:
        """The parsed output of ``kubectl get ... -o json``."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Server-side apply of objects that are given as Python values."""
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest)

    def kubeconfig_of(self, namespace: str, service_account: str) -> Path:
        """A kubeconfig with a token of the ServiceAccount, as a pod would have it."""
        access = new_client_from_config(str(self.kubeconfig))
        spec = client.V1TokenRequestSpec(audiences=[], expiration_seconds=3600)
        request = client.AuthenticationV1TokenRequest(spec=spec)
        answer = client.CoreV1Api(access).create_namespaced_service_account_token(service_account, namespace, request)
        access.close()
        return self._write_kubeconfig(f"{namespace}.{service_account}", answer.status.token)

    def _run(self, program: str, *arguments: str | Path, stdin: str | None = None) -> str:
        homes = {f"HELM_{kind}_HOME": str(self.directory / f"helm-{kind}") for kind in ("CACHE", "CONFIG", "DATA")}
        environment = {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.directory / "kube-cache"), **homes}
        return run(binaries() / program, *arguments, env=environment, input=stdin)

    def _write_kubeconfig(self, user: str, token: str) -> Path:
        """JSON is valid YAML. The file holds the server's certificate, so every client can check it."""
        authority = base64.b64encode((self.directory / "pki/apiserver.crt").read_bytes()).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": user,
            "clusters": [{"name": "api", "cluster": {"server": self.url, "certificate-authority-data": authority}}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": user, "context": {"cluster": "api", "user": user}}],
        }
        path = self.kubeconfig if user == ADMIN else self.directory / f"{user}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        return path


@contextlib.contextmanager
def api_server(
    controllers: Sequence[str] = (), admission_plugins: Sequence[str] = (), flags: Sequence[str] = ()
) -> Iterator[ApiServer]:
    """Run an API server until the context ends.

    Args:
        controllers: Names of controllers of kube-controller-manager to run beside the server.
        admission_plugins: Admission plugins beside those that Kubernetes enables by default.
        flags: More flags of kube-apiserver.

    Raises:
        NotReadyError: The server was not ready within 120 s. The message contains the end of its log.
    """
    programs = binaries()
    with contextlib.ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="aurora-api-", ignore_cleanup_errors=True)
        directory = Path(stack.enter_context(scratch))
        etcd, etcd_peer, port = free_ports(3)
        server = ApiServer(f"https://127.0.0.1:{port}", directory)
        stack.callback(server.stop_all)
        server._commands["etcd"] = [programs / "etcd", *_etcd_flags(directory, etcd, etcd_peer)]
        words = [*_api_server_flags(directory, etcd, port, admission_plugins), *flags]
        server._commands["kube-apiserver"] = [programs / "kube-apiserver", *words]
        for name in ("etcd", "kube-apiserver"):
            server.start(name)
        if controllers:
            words = _controller_flags(server, controllers)
            server._commands["kube-controller-manager"] = [programs / "kube-controller-manager", *words]
            server.start("kube-controller-manager")
        yield server


def _replace(folder: Path, by: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(by, folder)


def free_ports(count: int) -> list[int]:
    """Ports that are free at this moment.

    Raises:
        OSError: Fewer than ``count`` of :data:`PORTS` are free.
    """
    ports: list[int] = []
    for port in random.sample(PORTS, k=len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(f"fewer than {count} free ports between {PORTS.start} and {PORTS.stop}")


def _etcd_flags(directory: Path, port: int, peer_port: int) -> list[str]:
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    return [
        *(f"--data-dir={directory / 'etcd'}", "--log-level=warn", "--unsafe-no-fsync"),
        *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"),
        *(f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}"),
    ]


def _api_server_flags(directory: Path, etcd_port: int, port: int, admission_plugins: Sequence[str]) -> list[str]:
    """The server makes its own serving certificate. Its administrator has a static token."""
    pki = directory / "pki"
    pki.mkdir()
    run("openssl", "genrsa", "-out", pki / "service-account.key", "2048")
    (pki / "tokens.csv").write_text(f"{_ADMIN_TOKEN},{ADMIN},{ADMIN},system:masters\n")
    plugins = [f"--enable-admission-plugins={','.join(admission_plugins)}"] if admission_plugins else []
    return [
        *(f"--etcd-servers=http://127.0.0.1:{etcd_port}", "--bind-address=127.0.0.1", f"--secure-port={port}"),
        *(f"--cert-dir={pki}", f"--token-auth-file={pki / 'tokens.csv'}", "--authorization-mode=RBAC"),
        *("--service-cluster-ip-range=10.0.0.0/16", "--service-account-issuer=https://kubernetes.default.svc"),
        f"--service-account-key-file={pki / 'service-account.key'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        *plugins,
    ]


def _controller_flags(server: ApiServer, controllers: Sequence[str]) -> list[str]:
    return [
        *(f"--kubeconfig={server.kubeconfig}", "--leader-elect=false", "--secure-port=0"),
        *(f"--controllers={','.join(controllers)}", "--kube-api-qps=200", "--kube-api-burst=400"),
    ]


def _wait_until_ready(server: ApiServer, process: subprocess.Popen[bytes]) -> None:
    """Ready includes the hook that creates the built-in ClusterRoles."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    certificate = server.directory / "pki/apiserver.crt"
    while True:
        if certificate.exists() and _answers_ok(f"{server.url}/readyz", certificate):
            server._write_kubeconfig(ADMIN, _ADMIN_TOKEN)
            return
        if process.poll() is not None or time.monotonic() > deadline:
            log = (server.directory / "kube-apiserver.log").read_text(errors="replace")[-2000:]
            raise NotReadyError(f"the API server is not ready (exit {process.poll()}):\n{log}")
        time.sleep(0.2)


def _answers_ok(url: str, certificate: Path) -> bool:
    """Whether the answer is "ok". Asked without kubectl, which would take the core that the server needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {_ADMIN_TOKEN}"})  # noqa: S310 - https
    try:
        context.load_verify_locations(certificate)
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        with urllib.request.build_opener(*handlers).open(request, timeout=10) as answer:
            return bool(answer.read() == b"ok")
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        pass
    return False

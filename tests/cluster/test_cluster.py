"""The cluster behaves as a real Kubernetes cluster, and leaves nothing behind when it stops."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.command import CommandError, run, url_answers, wait_until
from tests.cluster.images.host_python import host_python_volumes
from tests.cluster.images.image_build import USER_ID, python_image, shell_image
from tests.cluster.images.image_import import digests_by_tag
from tests.cluster.local import host_resources
from tests.cluster.local.build import binaries, build_hash, find_go
from tests.cluster.local.cluster import LocalCluster
from tests.cluster.local.layout import layout

NAMESPACE = "cluster-test"
PYTHON_IMAGE = "aurora.test/python:1"
SHELL_IMAGE = "aurora.test/shell:1"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""The security context of the project's own pods."""


def fetch(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        return str(answer.read().decode())


def container(image: str, command: list[str], **more: Any) -> dict[str, Any]:
    return {"name": "main", "image": image, "command": command, "securityContext": RESTRICTED, **more}


def pod(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    spec = {"enableServiceLinks": False, "terminationGracePeriodSeconds": 0, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def run_pod(cluster: Cluster, name: str, spec: dict[str, Any]) -> str:
    """Run a pod until it ends and return its log."""
    cluster.apply(pod(name, {**spec, "restartPolicy": "Never"}))
    phase = "{.status.phase}"

    def has_ended() -> bool:
        return cluster.kubectl("get", "pod", name, "-n", NAMESPACE, "-o", f"jsonpath={phase}") in (
            "Succeeded",
            "Failed",
        )

    wait_until(
        f"the end of pod {name}", has_ended, 60, lambda: cluster.kubectl("describe", "pod", name, "-n", NAMESPACE)
    )
    return cluster.kubectl("logs", name, "-n", NAMESPACE)


@pytest.fixture(scope="module")
def namespace(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A namespace for pods. Both test images are imported."""
    images = tmp_path_factory.mktemp("images")
    cluster.load_image(python_image(images / "python.tar", PYTHON_IMAGE, Path("/usr/bin/python3")))
    cluster.load_image(shell_image(images / "shell.tar", SHELL_IMAGE))
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    wait_until(
        "the namespace's service account",
        lambda: bool(cluster.get("serviceaccounts", "-n", NAMESPACE)["items"]),
        30,
    )
    yield NAMESPACE
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def web(cluster: Cluster, namespace: str) -> str:
    """The ClusterIP of a Service with two pods."""
    labels = {"app": "web"}
    server = container(
        PYTHON_IMAGE,
        ["/usr/bin/python3", "-m", "http.server", "8080", "-d", "/etc"],
        readinessProbe={"httpGet": {"path": "/passwd", "port": 8080}, "periodSeconds": 1},
        resources={"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}},
    )
    metadata = {"name": "web", "namespace": namespace}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [server], "enableServiceLinks": False, "terminationGracePeriodSeconds": 0},
    }
    cluster.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )
    cluster.kubectl("rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s")
    return str(cluster.get("service", "web", "-n", namespace)["spec"]["clusterIP"])


def test_every_node_is_ready_and_runs_a_released_kubelet(cluster: Cluster) -> None:
    for node in cluster.get("nodes")["items"]:
        assert {c["type"]: c["status"] for c in node["status"]["conditions"]}["Ready"] == "True"
        assert node["status"]["nodeInfo"]["kubeletVersion"].startswith("v1.")


def test_the_host_reaches_a_cluster_ip(web: str) -> None:
    # kube-proxy learns of ready pods a moment after the API server reports them.
    wait_until("the Service", lambda: url_answers(f"http://{web}/passwd"), 10)
    assert "aurora:x:10001" in fetch(f"http://{web}/passwd")


def test_names_resolve_in_a_pod(cluster: Cluster, web: str, namespace: str) -> None:
    names = ["web", f"web.{namespace}.svc.cluster.local", "kubernetes.default"]
    script = f"import socket; print([socket.gethostbyname(n) for n in {names}][0])"
    assert cluster.kubectl("exec", "deploy/web", "-n", namespace, "--", "python3", "-c", script).strip() == web
    unknown = "import socket; socket.gethostbyname('does-not.exist')"
    with pytest.raises(CommandError, match=r"Name or service not known|No address"):
        cluster.kubectl("exec", "deploy/web", "-n", namespace, "--", "python3", "-c", unknown)


def test_exec_and_logs_reach_the_container(cluster: Cluster, web: str, namespace: str) -> None:
    assert cluster.kubectl("exec", "deploy/web", "-n", namespace, "--", "id", "-u").strip() == str(USER_ID)
    with pytest.raises(CommandError, match="Read-only file system"):
        cluster.kubectl("exec", "deploy/web", "-n", namespace, "--", "touch", "/etc/new")
    assert "GET /passwd" in cluster.kubectl("logs", "deploy/web", "-n", namespace)


def test_an_image_has_certificates_and_a_user_name(cluster: Cluster, namespace: str) -> None:
    script = (
        "import getpass, hashlib, json, lzma, sqlite3, ssl\n"
        "print(json.dumps([getpass.getuser(), len(ssl.create_default_context().get_ca_certs())]))"
    )
    spec = {"containers": [container(PYTHON_IMAGE, ["/usr/bin/python3", "-c", script])]}
    user, authorities = json.loads(run_pod(cluster, "tls", spec))
    assert user == "aurora"
    assert authorities > 50


def test_an_image_of_an_environment_with_private_files_runs_as_another_user(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    """The environment, a linked checkout, a site directory and an extra file are all in the image and readable."""
    environment, linked, site, extra = (tmp_path / name for name in ("env", "linked", "site", "extra.txt"))
    venv.create(environment, with_pip=False, symlinks=True)
    packages = environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (packages / "linked.pth").write_text(str(linked))
    for directory, module in ((packages, "first"), (linked, "second"), (site, "third")):
        directory.mkdir(exist_ok=True)
        (directory / f"{module}.py").write_text(f"NAME = {module!r}\n")
        (directory / f"{module}.py").chmod(0o600)
    extra.write_text("fourth")
    extra.chmod(0o600)
    tmp_path.chmod(0o700)
    tag = "aurora.test/private:1"
    out = tmp_path / "image.tar"
    python_image(out, tag, environment, site_dirs=[site], extra={"/opt/extra.txt": extra})
    first = digests_by_tag(out)
    python_image(out, tag, environment, site_dirs=[site], extra={"/opt/extra.txt": extra})
    assert digests_by_tag(out) == first, "the same content must give the same image, so that it is not imported again"
    cluster.load_image(out)
    script = (
        "import first, second, third, ssl; print(first.NAME, second.NAME, third.NAME, open('/opt/extra.txt').read())"
    )
    spec = {"containers": [{**container(tag, []), "command": [], "args": ["-c", script]}]}
    assert run_pod(cluster, "private", spec).split() == ["first", "second", "third", "fourth"]


def test_cpu_requests_and_memory_limits_reach_the_cgroup(cluster: Cluster, web: str, namespace: str) -> None:
    if os.environ.get("CLUSTER", "local") != "local":
        pytest.skip("reads the local cluster's control groups")
    uid = cluster.get("pods", "-n", namespace, "-l", "app=web")["items"][0]["metadata"]["uid"]
    groups = [path for path in host_resources.cgroup_directories(layout(cluster.name)) if path.name == f"pod{uid}"]
    names = ("cpu.shares", "cpu.weight", "memory.limit_in_bytes", "memory.max")
    files = [group / name for group in groups for name in names if (group / name).exists()]
    values = {path.name: int(path.read_text()) for path in files}
    assert values.get("cpu.shares") == 102 or values.get("cpu.weight", 100) < 20
    assert 64 * 2**20 in (values.get("memory.limit_in_bytes"), values.get("memory.max"))


def test_a_pod_reaches_a_server_on_the_host(cluster: Cluster, namespace: str) -> None:
    if not cluster.host_address:
        pytest.skip("set CLUSTER_HOST_ADDRESS to the address at which pods reach this machine")
    server = http.server.ThreadingHTTPServer((cluster.host_address, 0), http.server.SimpleHTTPRequestHandler)
    server.RequestHandlerClass = _HelloHandler
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://{cluster.host_address}:{server.server_address[1]}/"
        spec = {"containers": [container(SHELL_IMAGE, ["wget", "-q", "-O", "-", url])]}
        assert run_pod(cluster, "to-host", spec) == "hello"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _HelloHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Print nothing: the base class prints every request."""


@pytest.mark.parametrize("image", [SHELL_IMAGE, PYTHON_IMAGE])
def test_a_pod_runs_a_python_environment_of_the_host(cluster: Cluster, namespace: str, image: str) -> None:
    environment = Path(sys.prefix)
    volumes, mounts = host_python_volumes(environment)
    script = "import numpy, ssl, sys, os; print(sys.prefix, os.getuid(), int(numpy.ones((3, 3)).sum()))"
    spec = {
        "containers": [container(image, [f"{environment}/bin/python", "-c", script], volumeMounts=mounts)],
        "volumes": volumes,
    }
    name = "venv-" + image.split("/")[1].split(":")[0]
    assert run_pod(cluster, name, spec).split() == [str(environment), str(USER_ID), "9"]


def test_helm_installs_a_chart_and_waits_for_it(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    chart = tmp_path / "tiny"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text(json.dumps({"apiVersion": "v2", "name": "tiny", "version": "0.1.0"}))
    labels = {"app": "{{ .Release.Name }}"}
    spec = {
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [container(SHELL_IMAGE, ["sleep", "3600"])],
            },
        },
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "{{ .Release.Name }}"},
        "spec": spec,
    }
    (chart / "templates" / "deployment.yaml").write_text(json.dumps(deployment))
    cluster.helm("lint", "--strict", chart)
    cluster.helm("install", "tiny", chart, "-n", namespace, "--wait", "--timeout", "60s")
    assert cluster.get("deployment", "tiny", "-n", namespace)["status"]["readyReplicas"] == 1
    cluster.helm("uninstall", "tiny", "-n", namespace)


def test_a_second_cluster_runs_beside_the_first_and_leaves_nothing_behind(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    if os.environ.get("CLUSTER", "local") != "local":
        pytest.skip("checks how the local cluster stops")
    local = LocalCluster("beside")
    shell = shell_image(tmp_path / "shell.tar", SHELL_IMAGE)
    with Cluster.up("beside", kind="local") as second:
        assert second.host_address != cluster.host_address
        second.load_image(shell)
        second.apply(
            pod("sleeper", {"containers": [container(SHELL_IMAGE, ["sleep", "3600"])]})
            | {"metadata": {"name": "sleeper", "namespace": "default"}}
        )
        second.kubectl("wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s")
        holder_pid = local.sandbox.holder_pid()
        assert holder_pid is not None
        pid_namespace = os.readlink(f"/proc/{holder_pid}/ns/pid")
        assert len(_processes_in(pid_namespace)) > 8
        assert LocalCluster("beside").problem() is None
        mounts = Path(f"/proc/{holder_pid}/mountinfo").read_text()
        assert " /proc/sys/kernel/panic_on_oops " in mounts, "the kubelet would change the setting of this machine"
        assert local.sandbox.run("cat", "/proc/sys/kernel/panic_on_oops").strip() == "1", "the kubelet has set its own"
    assert _processes_in(pid_namespace) == []
    assert host_resources.cgroup_directories(local.layout) == []
    assert not host_resources.link_exists(local.layout)
    assert local.layout.cluster_cidr not in run("ip", "-4", "route")
    assert str(local.layout.directory) not in Path("/proc/mounts").read_text()
    assert not local.layout.kubeconfig.exists()
    assert LocalCluster("beside").problem() == "cluster beside is down"
    assert LocalCluster(cluster.name).problem() is None, "the first cluster must be untouched"
    local.down(purge=True)
    assert not local.layout.directory.exists()


def _processes_in(pid_namespace: str) -> list[int]:
    pids = []
    for path in Path("/proc").glob("[0-9]*/ns/pid"):
        try:
            if os.readlink(path) == pid_namespace:
                pids.append(int(path.parts[2]))
        except OSError:
            continue
    return pids


def test_the_programs_are_built_once() -> None:
    assert binaries().parent.name == build_hash(find_go())

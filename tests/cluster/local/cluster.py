"""The local cluster: starts the daemons in order, finds a running cluster by its name, and stops it."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.cluster.command import NotReadyError, run, url_answers, wait_until
from tests.cluster.file_lock import exclusive_lock
from tests.cluster.images.image_build import pause_image
from tests.cluster.images.image_import import import_image
from tests.cluster.local import daemons, host_resources, packet_queue, pki
from tests.cluster.local.build import binaries
from tests.cluster.local.layout import Layout, claim_network, layout, state_root
from tests.cluster.local.prerequisites import ensure_prerequisites
from tests.cluster.local.sandbox import Sandbox

STEP_TIMEOUT_SECONDS = 180
"""For each step of `up`. A whole `up` takes about 10 s, and took 76 s beside a build on the same two cores."""
_SOURCES_OF_STAMP = (
    "cluster.py",
    "coredns-rbac.json",
    "daemons.py",
    "host_resources.py",
    "layout.py",
    "network-policies-rbac.json",
    "packet_queue.py",
    "pause.c",
    "pki.py",
    "sandbox.py",
)
"""The files that define a cluster. A running cluster is not reused after one of these files changes."""
_KEPT_BY_DOWN = {"containerd", "network", "log"}
"""Entries of the cluster's directory that `down` keeps: images, the claimed network, and logs until the next `up`."""


class LocalCluster:
    """The local cluster of a given name. The object has no state: all state is in the directory and in the kernel."""

    def __init__(self, name: str) -> None:
        self.layout: Layout = layout(name)
        self.sandbox = Sandbox(self.layout)
        self._lock = state_root() / f"{name}.lock"

    # -- the state of the cluster -------------------------------------------------------------------------------------

    def problem(self) -> str | None:
        """Why the cluster is not usable, in one sentence. None when the cluster is up and healthy."""
        if self.sandbox.holder_pid() is None:
            return f"cluster {self.layout.name} is down"
        dead = [name for name in daemons.NAMES if not self.sandbox.is_running(name)]
        if dead:
            return f"cluster {self.layout.name}: {', '.join(dead)} ended; see {self.layout.logs}"
        if self._kubectl_or_none("get", "--raw", "/readyz") != "ok":
            return f"cluster {self.layout.name}: the API server is not ready; see {self.layout.logs}"
        if not self._node_is_ready():
            return f"cluster {self.layout.name}: its node is not Ready; see {self.layout.logs}"
        return None

    def client_environment(self) -> dict[str, str]:
        """The variables for kubectl, helm and any other client of the cluster."""
        directory = self.layout.directory
        return {
            "KUBECONFIG": str(self.layout.kubeconfig),
            # kubectl keys its discovery cache by address, and earlier clusters have used this address.
            "KUBECACHEDIR": str(directory / "cache" / "kube"),
            "HELM_CACHE_HOME": str(directory / "cache" / "helm"),
            "HELM_CONFIG_HOME": str(directory / "cache" / "helm-config"),
            "HELM_DATA_HOME": str(directory / "cache" / "helm-data"),
        }

    # -- up and down --------------------------------------------------------------------------------------------------

    def up(self) -> bool:
        """Reuse the cluster if it is healthy and was made by the same code and programs. Otherwise start a new one.

        Returns:
            Whether this call started the cluster.
        """
        ensure_prerequisites()
        built = binaries()
        with exclusive_lock(self._lock):
            same = self._stamp_file().exists() and self._stamp_file().read_text() == self._stamp(built)
            if same and not self.problem():
                return False
            self._stop_and_clean()
            with exclusive_lock(state_root() / "lock"):
                self.layout = layout(self.layout.name)
                claim_network(self.layout)
            self.sandbox = Sandbox(self.layout)
            try:
                self._start(built)
            except BaseException:
                self._stop_and_clean()
                host_resources.unblock_addresses(self.layout)
                raise
            self._stamp_file().write_text(self._stamp(built))
        return True

    def down(self, purge: bool = False) -> None:
        """Stop the cluster. `purge` also removes imported images and all other files of the cluster."""
        with exclusive_lock(self._lock):
            self._stop_and_clean()
            host_resources.unblock_addresses(self.layout)
            if purge:
                shutil.rmtree(self.layout.directory, ignore_errors=True)

    def _stop_and_clean(self) -> None:
        self.sandbox.stop()
        host_resources.remove_link(self.layout)
        host_resources.remove_cgroups(self.layout)
        for path in self.layout.directory.glob("*"):
            if path.name not in _KEPT_BY_DOWN:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _start(self, built: Path) -> None:
        cluster = self.layout
        if route := host_resources.conflicting_route(cluster):
            raise NotReadyError(
                f"cluster {cluster.name} cannot use {cluster.cluster_cidr}, because this machine has the route "
                f"'{route}': choose another name for the cluster"
            )
        shutil.rmtree(cluster.logs, ignore_errors=True)
        cluster.logs.mkdir(parents=True)
        init = cluster.directory / "pause"
        run("gcc", "-static", "-Os", "-o", init, Path(__file__).with_name("pause.c"))
        self._start_sandbox(init)
        pki.create_pki(cluster)
        daemons.write_configs(cluster)
        shutil.copy(cluster.pki / "admin.kubeconfig", cluster.kubeconfig)
        for name in ("etcd", "kube-apiserver", "containerd"):
            self._spawn(name, built)
        self._wait("the API server", lambda: self._kubectl_or_none("get", "--raw", "/readyz") == "ok", "kube-apiserver")
        for name in ("kube-controller-manager", "kube-scheduler"):
            self._spawn(name, built)
        for name in ("coredns", "network-policies"):
            self._kubectl("apply", "-f", str(Path(__file__).with_name(f"{name}-rbac.json")))
        self._wait_for_containerd()
        self._delete_old_containers()
        pause_image(cluster.directory / "pause.tar", daemons.PAUSE_IMAGE, init)
        self.load_image(cluster.directory / "pause.tar")
        for name in ("coredns", "network-policies", "kubelet", "kube-proxy"):
            self._spawn(name, built)
        self._wait("the node", self._node_is_ready, "kubelet")
        self._wait("the default service account", self._default_account_exists, "kube-controller-manager")
        self._wait("DNS", lambda: url_answers(f"http://{cluster.node_address}:8181/ready"), "coredns")
        self._wait_for_network_policies()

    def _start_sandbox(self, init: Path) -> None:
        """The namespaces, and the resources on the host that connect and limit them."""
        cluster = self.layout
        holder_pid = self.sandbox.start(init)
        host_resources.create_cgroups(cluster)
        host_resources.create_link(cluster, holder_pid)
        self.sandbox.run("sh", "-ec", host_resources.inner_network_script(cluster))
        host_resources.create_routes(cluster)

    # -- images and single daemons ------------------------------------------------------------------------------------

    def load_image(self, tar: Path) -> None:
        """Import a docker archive into containerd. An archive that is already imported is skipped."""
        import_image(self.sandbox, binaries() / "ctr", self.layout.containerd_root, tar)

    def stop(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Stop one daemon by a signal, and wait until it has ended. The other daemons see a crash."""
        self.sandbox.send_signal(daemon, number)
        wait_until(f"the end of {daemon}", lambda: not self.sandbox.is_running(daemon), 30)

    def start(self, daemon: str) -> None:
        """Start a daemon that was stopped. Waits until containerd answers, because other daemons need containerd."""
        self._spawn(daemon, binaries())
        if daemon == "containerd":
            self._wait_for_containerd()
        elif daemon == "network-policies":
            self._wait_for_network_policies()

    def _spawn(self, name: str, built: Path) -> None:
        command = daemons.commands(self.layout, built)[name]
        self.sandbox.spawn(name, command, env=daemons.extra_environment(name, built))

    def _wait_for_containerd(self) -> None:
        self._wait("containerd", lambda: self._ctr_or_none("version") is not None, "containerd")

    def _wait_for_network_policies(self) -> None:
        """Wait until the daemon judges packets. Until then pods can't connect to each other."""

        def reads_the_queue() -> bool:
            lines = self.sandbox.run("cat", packet_queue.STATUS).splitlines()
            return any(line.split()[0] == str(packet_queue.NUMBER) for line in lines)

        self._wait("the enforcement of NetworkPolicies", reads_the_queue, "network-policies")

    def _wait(self, description: str, ready: Callable[[], bool], daemon: str) -> None:
        """Wait until `ready`. Fail at once, with the end of the log, when `daemon` ends before that."""

        def ready_or_raise() -> bool:
            if ready():
                return True
            if not self.sandbox.is_running(daemon):
                raise NotReadyError(f"{daemon} ended before {description} was ready{self._log_tail(daemon)}")
            return False

        wait_until(description, ready_or_raise, STEP_TIMEOUT_SECONDS, partial(self._log_tail, daemon))

    def _log_tail(self, daemon: str) -> str:
        lines = (self.layout.logs / f"{daemon}.log").read_text(errors="replace").splitlines()
        return "\n" + "\n".join(lines[-15:])

    def _kubectl(self, *arguments: str) -> str:
        return run(binaries() / "kubectl", *arguments, env=self.client_environment())

    def _kubectl_or_none(self, *arguments: str) -> str | None:
        try:
            return self._kubectl("--request-timeout=5s", *arguments)
        except RuntimeError:
            return None

    def _node_is_ready(self) -> bool:
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        return self._kubectl_or_none("get", "node", pki.NODE, "-o", f"jsonpath={path}") == "True"

    def _default_account_exists(self) -> bool:
        return self._kubectl_or_none("get", "serviceaccount", "default") is not None

    def _ctr_or_none(self, *arguments: str) -> str | None:
        try:
            return self.sandbox.run(binaries() / "ctr", "--namespace", "k8s.io", *arguments)
        except RuntimeError:
            return None

    def _delete_old_containers(self) -> None:
        """Remove the containers of earlier runs from containerd's database, which is kept because of its images."""
        old = (self._ctr_or_none("containers", "list", "-q") or "").split()
        if old:
            self._ctr_or_none("containers", "delete", *old)

    # -- reuse --------------------------------------------------------------------------------------------------------

    def _stamp_file(self) -> Path:
        return self.layout.directory / "stamp"

    def _stamp(self, built: Path) -> str:
        """A hash of the code and programs that make a cluster. A cluster with another stamp must not be reused."""
        digest = hashlib.sha256(json.dumps(str(built)).encode())
        for name in _SOURCES_OF_STAMP:
            digest.update(Path(__file__).with_name(name).read_bytes())
        return digest.hexdigest()

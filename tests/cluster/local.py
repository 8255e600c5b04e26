"""The local cluster: started in order, found again by its name, ended as one process."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

from tests.cluster import daemons, host, pki
from tests.cluster.access import Access
from tests.cluster.build import binaries
from tests.cluster.command import NotReadyError, answers, run, wait_until
from tests.cluster.image import pause_image
from tests.cluster.images import import_image
from tests.cluster.layout import Layout, claim_network, layout, state_root
from tests.cluster.locks import exclusive
from tests.cluster.prerequisites import ensure_prerequisites
from tests.cluster.sandbox import Sandbox

START_TIMEOUT = 180
"""Seconds for each step. `up` takes ten, but another build on the same two cores has made it 76."""
_DECIDING = ("coredns-access.json", "daemons.py", "host.py", "layout.py", "local.py", "pause.c", "pki.py", "sandbox.py")
"""The files that decide what a cluster is. After a change in one of them a running cluster is not reused."""
_KEPT = {"containerd", "network", "log"}
"""What `down` leaves in the directory: images, the claimed addresses, and logs until the next `up`."""


class LocalCluster:
    """The cluster of a given name. Holds no state of its own: everything is in the directory and in the kernel."""

    def __init__(self, name: str) -> None:
        self.layout: Layout = layout(name)
        self.sandbox = Sandbox(self.layout)
        self._lock = state_root() / f"{name}.lock"

    # -- what is there ------------------------------------------------------------------------------------------------

    def problem(self) -> str | None:
        """Why the cluster is not usable, in a sentence, or None when it is up and healthy."""
        if self.sandbox.holder() is None:
            return f"cluster {self.layout.name} is down"
        dead = [name for name in daemons.NAMES if not self.sandbox.running(name)]
        if dead:
            return f"cluster {self.layout.name} has lost {', '.join(dead)}; see {self.layout.logs}"
        if self._kubectl_or_none("get", "--raw", "/readyz") != "ok":
            return f"cluster {self.layout.name}: the API server does not answer ok; see {self.layout.logs}"
        return None if self._node_ready() else f"cluster {self.layout.name}: its node is not Ready"

    def access(self, created: bool) -> Access:
        built = binaries()
        directory = self.layout.directory
        caches = {
            # kubectl's discovery cache is keyed by address, and this address has served other clusters
            "KUBECACHEDIR": str(directory / "cache" / "kube"),
            "HELM_CACHE_HOME": str(directory / "cache" / "helm"),
            "HELM_CONFIG_HOME": str(directory / "cache" / "helm-config"),
            "HELM_DATA_HOME": str(directory / "cache" / "helm-data"),
        }
        return Access(
            name=self.layout.name,
            kubeconfig=self.layout.kubeconfig,
            kubectl=built / "kubectl",
            helm=built / "helm",
            host_address=self.layout.host_address,
            load_image=self.load_image,
            down=self.down,
            created=created,
            environment=caches,
        )

    # -- up and down --------------------------------------------------------------------------------------------------

    def up(self) -> Access:
        """Reuse the cluster if it is healthy and of the same code and programs; otherwise end it and start anew."""
        ensure_prerequisites()
        built = binaries()
        with exclusive(self._lock):
            same = self._stamp_file().exists() and self._stamp_file().read_text() == self._stamp(built)
            if same and not self.problem():
                return self.access(created=False)
            self._down()
            with exclusive(state_root() / "lock"):
                self.layout = layout(self.layout.name)
                claim_network(self.layout)
            self.sandbox = Sandbox(self.layout)
            try:
                self._start(built)
            except BaseException:
                self._down()
                raise
            self._stamp_file().write_text(self._stamp(built))
        return self.access(created=True)

    def down(self, purge: bool = False) -> None:
        """End the cluster. Its imported images stay for the next one unless `purge`."""
        with exclusive(self._lock):
            self._down()
            if purge:
                host.forget_addresses(self.layout)
                shutil.rmtree(self.layout.directory, ignore_errors=True)

    def _down(self) -> None:
        known = self.layout.directory.exists()
        self.sandbox.stop()
        host.remove_link(self.layout)
        host.remove_cgroups(self.layout)
        if known:
            host.refuse_addresses(self.layout)
        for path in self.layout.directory.glob("*"):
            if path.name not in _KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _start(self, built: Path) -> None:
        cluster = self.layout
        if conflict := host.address_conflict(cluster):
            raise RuntimeError(
                f"the cluster's addresses {cluster.whole_cidr} are in use ({conflict}): choose another name"
            )
        shutil.rmtree(cluster.logs, ignore_errors=True)
        cluster.logs.mkdir(parents=True)
        init = cluster.directory / "pause"
        run("gcc", "-static", "-Os", "-o", init, Path(__file__).with_name("pause.c"))
        holder = self.sandbox.start(init)
        host.make_cgroups(cluster)
        host.make_link(cluster, holder)
        self.sandbox.run("sh", "-ec", host.inner_network(cluster))
        host.make_routes(cluster)
        pki.make(cluster)
        daemons.write_configs(cluster)
        shutil.copy(cluster.pki / "admin.kubeconfig", cluster.kubeconfig)
        for name in ("etcd", "kube-apiserver", "containerd"):
            self._spawn(name, built)
        self._wait("the API server", lambda: self._kubectl_or_none("get", "--raw", "/readyz") == "ok", "kube-apiserver")
        for name in ("kube-controller-manager", "kube-scheduler"):
            self._spawn(name, built)
        self._kubectl("apply", "-f", str(Path(__file__).with_name("coredns-access.json")))
        self._wait_for_containerd()
        self._forget_containers()
        pause_image(cluster.directory / "pause.tar", daemons.PAUSE_IMAGE, init)
        self.load_image(cluster.directory / "pause.tar")
        for name in ("coredns", "kubelet", "kube-proxy"):
            self._spawn(name, built)
        self._wait("the node", self._node_ready, "kubelet")
        self._wait("the default service account", self._default_account, "kube-controller-manager")
        self._wait("DNS", lambda: answers(f"http://{cluster.node_address}:8181/ready"), "coredns")

    # -- parts --------------------------------------------------------------------------------------------------------

    def load_image(self, tar: Path) -> None:
        import_image(self.sandbox, binaries() / "ctr", self.layout.containerd_root, tar)

    def restart(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End one daemon and start it again with the same command line: what a crash looks like to everyone else."""
        self.stop(daemon, number)
        self.start(daemon)

    def stop(self, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        self.sandbox.signal(daemon, number)
        wait_until(f"the end of {daemon}", lambda: not self.sandbox.running(daemon), 30)

    def start(self, daemon: str) -> None:
        """Start a daemon that was stopped; the others may be started once containerd answers."""
        self._spawn(daemon, binaries())
        if daemon == "containerd":
            self._wait_for_containerd()

    def _spawn(self, name: str, built: Path) -> None:
        self.sandbox.spawn(name, daemons.commands(self.layout, built)[name], env=daemons.path_for(name, built))

    def _wait_for_containerd(self) -> None:
        self._wait("containerd", lambda: self._ctr("version") is not None, "containerd")

    def _wait(self, what: str, ready: Any, daemon: str) -> None:
        def ready_or_dead() -> bool:
            if ready():
                return True
            if not self.sandbox.running(daemon):
                raise NotReadyError(f"{daemon} ended while {what} was awaited{self._log_tail(daemon)}")
            return False

        wait_until(what, ready_or_dead, START_TIMEOUT, partial(self._log_tail, daemon))

    def _log_tail(self, daemon: str) -> str:
        lines = (self.layout.logs / f"{daemon}.log").read_text(errors="replace").splitlines()
        return "\n" + "\n".join(lines[-15:])

    def _kubectl(self, *arguments: str) -> str:
        access = self.access(created=False)
        return run(access.kubectl, "--kubeconfig", access.kubeconfig, *arguments, env=access.environment)

    def _kubectl_or_none(self, *arguments: str) -> str | None:
        try:
            return self._kubectl("--request-timeout=5s", *arguments)
        except RuntimeError:
            return None

    def _node_ready(self) -> bool:
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        return self._kubectl_or_none("get", "node", pki.NODE, "-o", f"jsonpath={path}") == "True"

    def _default_account(self) -> bool:
        return self._kubectl_or_none("get", "serviceaccount", "default") is not None

    def _ctr(self, *arguments: str) -> str | None:
        try:
            return self.sandbox.run(binaries() / "ctr", "--namespace", "k8s.io", *arguments)
        except RuntimeError:
            return None

    def _forget_containers(self) -> None:
        """Containers of an earlier run are still in containerd's database, which is kept for its images."""
        old = (self._ctr("containers", "list", "-q") or "").split()
        if old:
            self._ctr("containers", "delete", *old)

    def _stamp_file(self) -> Path:
        return self.layout.directory / "stamp"

    def _stamp(self, built: Path) -> str:
        """What a running cluster was made by. A different stamp means that it must not be reused."""
        digest = hashlib.sha256(json.dumps(str(built)).encode())
        for name in _DECIDING:
            digest.update(Path(__file__).with_name(name).read_bytes())
        return digest.hexdigest()

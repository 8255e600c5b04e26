"""The configuration files and command lines of the cluster's daemons.

A value that differs from the daemon's default has its reason beside it. The most common reason: the cluster must also
run in a container or virtual machine that has cgroup v1 and lacks CAP_SYS_RESOURCE.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cluster.local import packet_queue
from tests.cluster.local.layout import Layout
from tests.cluster.local.pki import API_PORT, NODE
from tests.cluster.local.prerequisites import SEARCH_PATH, cni_directory

ETCD_URL = "http://127.0.0.1:2379"
ETCD_PEER_URL = "http://127.0.0.1:2380"
PAUSE_IMAGE = "aurora.invalid/pause:1"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
"""A path inside the sandbox, which has its own /run."""

NAMES = (
    "etcd",
    "kube-apiserver",
    "containerd",
    "kube-controller-manager",
    "kube-scheduler",
    "coredns",
    "network-policies",
    "kubelet",
    "kube-proxy",
)
"""All daemons, in the order in which they start."""


def write_configs(cluster: Layout) -> None:
    """Write every file under etc/. YAML files are written as JSON, which is valid YAML."""
    cluster.etc.mkdir(parents=True, exist_ok=True)
    (cluster.etc / "containerd.toml").write_text(_containerd_config(cluster))
    (cluster.etc / "cni").mkdir(exist_ok=True)
    (cluster.etc / "cni" / "10-aurora.conflist").write_text(json.dumps(_cni_network(cluster), indent=1))
    (cluster.etc / "kubelet.json").write_text(json.dumps(_kubelet_config(cluster), indent=1))
    (cluster.etc / "kube-proxy.json").write_text(json.dumps(_proxy_config(cluster), indent=1))
    (cluster.etc / "Corefile").write_text(_corefile(cluster))
    (cluster.etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")


def extra_environment(name: str, binaries: Path) -> dict[str, str]:
    """Variables of one daemon. Only containerd needs any: it finds its shim on the PATH, and the shim finds runc."""
    return {"PATH": f"{binaries}:{SEARCH_PATH}"} if name == "containerd" else {}


def _containerd_config(cluster: Layout) -> str:
    """containerd without plugins that nothing here uses, and with cgroups that need no systemd."""
    return f"""version = 3
root = "{cluster.containerd_root}"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true         # lowering the score needs CAP_SYS_RESOURCE
  netns_mounts_under_state_dir = true   # inside the sandbox's own /run
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{cni_directory()}"]
  conf_dir = "{cluster.etc / "cni"}"
"""


def _cni_network(cluster: Layout) -> dict[str, Any]:
    """A link from each pod to the node, without masquerade.

    Pods keep their address on the way to the host, and reach nothing beyond the host. The node routes the packets
    between pods, and so can drop them. On a bridge, these packets would bypass the rules for forwarded packets.
    """
    link = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": cluster.pod_cidr}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    return {
        "cniVersion": "1.0.0",
        "name": "aurora",
        "plugins": [link, {"type": "portmap", "capabilities": {"portMappings": True}}],
    }


def _kubelet_config(cluster: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"x509": {"clientCAFile": str(cluster.pki / "ca.crt")}, "webhook": {"enabled": True}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(cluster.pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(cluster.pki / "kubelet.key"),
        "failCgroupV1": False,  # the machine may have cgroup v1
        "cgroupDriver": "cgroupfs",  # the sandbox runs no systemd
        "cgroupRoot": f"/{cluster.cgroup}",
        "failSwapOn": False,  # the machine may have swap
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "clusterDomain": "cluster.local",
        "clusterDNS": [cluster.node_address],
        "resolvConf": str(cluster.etc / "resolv.conf"),  # the host's file lists servers that pods cannot reach
        "maxPods": 250,
        "nodeStatusUpdateFrequency": "1s",  # the node is Ready seconds earlier
        "imageGCHighThresholdPercent": 100,  # a deleted image could not be pulled again: no registry
        "imageGCLowThresholdPercent": 99,
        "imagePullCredentialsVerificationPolicy": "NeverVerify",  # images were imported, not pulled
        # Lower limits than the defaults: a developer's disk may be nearly full.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "podLogsDir": "/var/log/pods",
        "volumePluginDir": str(cluster.directory / "volume-plugins"),
        "shutdownGracePeriod": "0s",
    }


def _proxy_config(cluster: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(cluster.pki / "kube-proxy.kubeconfig")},
        "mode": "nftables",
        "nftables": {"minSyncPeriod": "100ms"},  # Services follow their pods sooner, which is cheap in a small cluster
        "clusterCIDR": cluster.pod_cidr,
        "hostnameOverride": NODE,
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "127.0.0.1:10256",
        # Zeros leave the kernel's connection tracking limits unchanged: a container may not be allowed to set them.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _corefile(cluster: Layout) -> str:
    """CoreDNS answers for the cluster's own names only; all other names do not exist.

    There are two server blocks, because in one block the plugin `template` would answer before `kubernetes`.
    """
    return f"""cluster.local:53 in-addr.arpa:53 {{
  bind {cluster.node_address}
  errors
  ready {cluster.node_address}:8181
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {cluster.pki / "coredns.kubeconfig"}
    ttl 5
  }}
  loadbalance
}}
.:53 {{
  bind {cluster.node_address}
  errors
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""


def _flags(**values: str | Path | int) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def _client_flags(cluster: Layout, name: str) -> list[str]:
    """The connection of a control plane daemon to the API server.

    The request limits are high enough to start hundreds of pods within seconds.
    """
    kubeconfig = cluster.pki / f"{name}.kubeconfig"
    return _flags(
        kubeconfig=kubeconfig,
        authentication_kubeconfig=kubeconfig,
        authorization_kubeconfig=kubeconfig,
        bind_address="127.0.0.1",
        leader_elect="false",
        kube_api_qps=500,
        kube_api_burst=1000,
    )


def _etcd_flags(cluster: Layout) -> list[str]:
    return [
        *_flags(name="default", data_dir=cluster.directory / "etcd", log_level="warn"),
        *_flags(listen_client_urls=ETCD_URL, advertise_client_urls=ETCD_URL, listen_peer_urls=ETCD_PEER_URL),
        *_flags(initial_advertise_peer_urls=ETCD_PEER_URL, initial_cluster=f"default={ETCD_PEER_URL}"),
        "--unsafe-no-fsync",  # a power cut may lose data here: no data needs to survive one
    ]


def _apiserver_flags(cluster: Layout) -> list[str]:
    pki = cluster.pki
    return _flags(
        etcd_servers=ETCD_URL,
        bind_address="0.0.0.0",  # noqa: S104  (all addresses of the sandbox's own network)
        secure_port=API_PORT,
        advertise_address=cluster.node_address,
        authorization_mode="Node,RBAC",
        enable_admission_plugins="NodeRestriction",
        allow_privileged="true",
        service_cluster_ip_range=cluster.service_cidr,
        client_ca_file=pki / "ca.crt",
        tls_cert_file=pki / "kube-apiserver.crt",
        tls_private_key_file=pki / "kube-apiserver.key",
        service_account_issuer="https://kubernetes.default.svc.cluster.local",
        service_account_key_file=pki / "service-account.pub",
        service_account_signing_key_file=pki / "service-account.key",
        kubelet_preferred_address_types="InternalIP",
        kubelet_certificate_authority=pki / "ca.crt",
        kubelet_client_certificate=pki / "kube-apiserver-client.crt",
        kubelet_client_key=pki / "kube-apiserver-client.key",
        requestheader_client_ca_file=pki / "front-proxy-ca.crt",
        requestheader_allowed_names="front-proxy-client",
        requestheader_extra_headers_prefix="X-Remote-Extra-",
        requestheader_group_headers="X-Remote-Group",
        requestheader_username_headers="X-Remote-User",
        proxy_client_cert_file=pki / "front-proxy.crt",
        proxy_client_key_file=pki / "front-proxy.key",
    )


def _controller_manager_flags(cluster: Layout) -> list[str]:
    pki = cluster.pki
    return [
        *_client_flags(cluster, "kube-controller-manager"),
        *_flags(
            use_service_account_credentials="true",
            root_ca_file=pki / "ca.crt",
            service_account_private_key_file=pki / "service-account.key",
            cluster_signing_cert_file=pki / "ca.crt",
            cluster_signing_key_file=pki / "ca.key",
            allocate_node_cidrs="true",
            cluster_cidr=cluster.pod_cidr,
            node_cidr_mask_size=18,  # the one node gets all pod addresses: a /24 would just hold 250 pods
            service_cluster_ip_range=cluster.service_cidr,
        ),
    ]


def _kubelet_flags(cluster: Layout) -> list[str]:
    return _flags(
        config=cluster.etc / "kubelet.json",
        kubeconfig=cluster.pki / "kubelet.kubeconfig",
        hostname_override=NODE,
        node_ip=cluster.node_address,
    )


def commands(cluster: Layout, binaries: Path) -> dict[str, list[str | Path]]:
    """Daemon name -> command line."""
    flags: dict[str, list[str]] = {
        "etcd": _etcd_flags(cluster),
        "containerd": ["--config", str(cluster.etc / "containerd.toml")],
        "kube-apiserver": _apiserver_flags(cluster),
        "kube-controller-manager": _controller_manager_flags(cluster),
        "kube-scheduler": _client_flags(cluster, "kube-scheduler"),
        "coredns": ["-conf", str(cluster.etc / "Corefile")],
        "network-policies": _flags(kubeconfig=cluster.pki / "network-policies.kubeconfig", queue=packet_queue.NUMBER),
        "kubelet": _kubelet_flags(cluster),
        "kube-proxy": _flags(config=cluster.etc / "kube-proxy.json"),
    }
    return {name: [binaries / name, *words] for name, words in flags.items()}

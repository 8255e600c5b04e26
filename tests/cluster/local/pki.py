"""The cluster's certificates and kubeconfigs, created anew at every `up`.

A kubeconfig of an earlier cluster cannot reach a later cluster, because each cluster has its own certificate authority.
Elliptic-curve keys keep the cost at a fraction of a second.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.command import run
from tests.cluster.local.layout import Layout

NODE = "node1"
API_PORT = 6443


@dataclass(frozen=True)
class Identity:
    """A client certificate: the name of its file, and the user and group that Kubernetes reads from it."""

    file: str
    user: str
    group: str = ""


IDENTITIES = (
    Identity("admin", "admin", "system:masters"),
    Identity("kube-apiserver-client", "kube-apiserver-kubelet-client", "system:masters"),
    Identity("kube-controller-manager", "system:kube-controller-manager"),
    Identity("kube-scheduler", "system:kube-scheduler"),
    Identity("kube-proxy", "system:kube-proxy"),
    Identity("kubelet", f"system:node:{NODE}", "system:nodes"),
    Identity("coredns", "system:coredns"),
    Identity("network-policies", "system:network-policies"),
)
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "3650")


def create_pki(cluster: Layout) -> None:
    """Create every key and certificate, and one kubeconfig per identity at pki/<identity>.kubeconfig."""
    directory = cluster.pki
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True, mode=0o700)
    create_authority(directory, "ca")
    create_authority(directory, "front-proxy-ca")
    create_certificate(directory, "front-proxy-ca", "front-proxy", "/CN=front-proxy-client")
    dns = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", NODE)
    addresses = ("127.0.0.1", cluster.first_service_address, cluster.node_address)
    names = [f"DNS:{name}" for name in dns] + [f"IP:{address}" for address in addresses]
    create_certificate(directory, "ca", "kube-apiserver", "/CN=kube-apiserver", names)
    for identity in IDENTITIES:
        subject = (f"/O={identity.group}" if identity.group else "") + f"/CN={identity.user}"
        serving = [f"DNS:{NODE}", f"IP:{cluster.node_address}"] if identity.file == "kubelet" else []
        create_certificate(directory, "ca", identity.file, subject, serving)
        _write_kubeconfig(cluster, identity.file)
    run("openssl", "genrsa", "-out", directory / "service-account.key", "2048")
    run(
        "openssl", "rsa", "-in", directory / "service-account.key", "-pubout", "-out", directory / "service-account.pub"
    )


def create_authority(directory: Path, name: str) -> None:
    """A key and a certificate that can sign others: `<name>.key` and `<name>.crt`."""
    run(
        *("openssl", "req", "-x509", *_NEW_KEY, "-subj", f"/CN={name}"),
        *("-addext", "keyUsage=critical,digitalSignature,keyCertSign,cRLSign"),
        *("-keyout", directory / f"{name}.key", "-out", directory / f"{name}.crt"),
    )


def create_certificate(directory: Path, authority: str, file: str, subject: str, names: Sequence[str] = ()) -> None:
    """A key and a certificate that `authority` signs. `names` are subject alternative names, as `DNS:x` or `IP:x`."""
    extensions = ["basicConstraints=critical,CA:FALSE", "extendedKeyUsage=clientAuth,serverAuth"]
    if names:
        extensions.append("subjectAltName=" + ",".join(names))
    run(
        *("openssl", "req", "-x509", *_NEW_KEY, "-subj", subject),
        *("-CA", directory / f"{authority}.crt", "-CAkey", directory / f"{authority}.key"),
        *(part for extension in extensions for part in ("-addext", extension)),
        *("-keyout", directory / f"{file}.key", "-out", directory / f"{file}.crt"),
    )


def _base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _write_kubeconfig(cluster: Layout, identity: str) -> None:
    """Write a kubeconfig that contains its certificates, so the file can be copied anywhere. JSON is valid YAML."""
    directory = cluster.pki
    context = f"aurora-{cluster.name}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": context,
        "clusters": [
            {
                "name": context,
                "cluster": {
                    "server": f"https://{cluster.node_address}:{API_PORT}",
                    "certificate-authority-data": _base64_of(directory / "ca.crt"),
                },
            }
        ],
        "users": [
            {
                "name": identity,
                "user": {
                    "client-certificate-data": _base64_of(directory / f"{identity}.crt"),
                    "client-key-data": _base64_of(directory / f"{identity}.key"),
                },
            }
        ],
        "contexts": [{"name": context, "context": {"cluster": context, "user": identity}}],
    }
    path = directory / f"{identity}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1))

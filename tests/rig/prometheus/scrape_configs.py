"""Turns PodMonitors into scrape configurations of Prometheus, as the Prometheus operator does.

The Prometheus operator itself is no module of the Go registry, so this is our own writing after its documentation.
Invariant: a field that is not translated here is refused, so that no test passes without what the chart asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_POD: Final = "__meta_kubernetes_pod"
_MONITOR_FIELDS: Final = frozenset({"namespaceSelector", "selector", "podTargetLabels", "podMetricsEndpoints"})
_ENDPOINT_FIELDS: Final = frozenset({"port", "path", "interval", "honorLabels", "relabelings"})
_RELABELING_FIELDS: Final = {
    "action": "action",
    "regex": "regex",
    "replacement": "replacement",
    "separator": "separator",
    "sourceLabels": "source_labels",
    "targetLabel": "target_label",
}
"""A field of a PodMonitor -> the field of Prometheus."""

Object = Mapping[str, Any]


def scrape_configs(monitor: Object, kubeconfig: Path) -> Iterator[dict[str, Any]]:
    """One scrape configuration for each endpoint of ``monitor``.

    Args:
        kubeconfig: Access to the API server that knows the pods.

    Raises:
        ValueError: The PodMonitor has a field that this function does not translate.
    """
    spec, metadata = monitor["spec"], monitor["metadata"]
    _refuse_others(spec, _MONITOR_FIELDS)
    _refuse_others(spec["selector"], frozenset({"matchLabels"}))
    job = f"{metadata['namespace']}/{metadata['name']}"
    discovery: dict[str, Any] = {"role": "pod", "kubeconfig_file": str(kubeconfig)}
    names = _namespaces(spec.get("namespaceSelector", {}), metadata["namespace"])
    if names:
        discovery["namespaces"] = {"names": names}
    for number, endpoint in enumerate(spec["podMetricsEndpoints"]):
        _refuse_others(endpoint, _ENDPOINT_FIELDS)
        yield {
            "job_name": f"podMonitor/{job}/{number}",
            "kubernetes_sd_configs": [discovery],
            "scrape_interval": endpoint["interval"],
            "metrics_path": endpoint.get("path", "/metrics"),
            "honor_labels": endpoint.get("honorLabels", False),
            "relabel_configs": [
                *_kept_pods(spec["selector"]["matchLabels"]),
                _keep([f"{_POD}_container_port_name"], re.escape(endpoint["port"])),
                *_target_labels(job, endpoint["port"]),
                *_copied_labels(spec.get("podTargetLabels", ())),
                *(_translated(relabeling) for relabeling in endpoint.get("relabelings", ())),
            ],
        }


def _namespaces(selector: Object, own: str) -> list[str]:
    """Where the PodMonitor looks for pods. Empty: everywhere."""
    _refuse_others(selector, frozenset({"any", "matchNames"}))
    return [] if selector.get("any") else list(selector.get("matchNames", [own]))


def _kept_pods(labels: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    yield {"source_labels": [f"{_POD}_phase"], "regex": "(Failed|Succeeded)", "action": "drop"}
    for label, value in labels.items():
        name = _label_name(label)
        yield _keep([f"{_POD}_label_{name}", f"{_POD}_labelpresent_{name}"], f"({re.escape(value)});true")


def _copied_labels(labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Copy labels of the pod to its metrics. A pod that lacks a label gets no empty one."""
    for name in map(_label_name, labels):
        yield {"source_labels": [f"{_POD}_label_{name}"], "target_label": name, "regex": "(.+)"}


def _label_name(label: str) -> str:
    """What Prometheus calls a label of Kubernetes."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", label)


def _target_labels(job: str, port: str) -> Iterator[dict[str, Any]]:
    for source, target in (("__meta_kubernetes_namespace", "namespace"), (f"{_POD}_container_name", "container")):
        yield {"source_labels": [source], "target_label": target}
    yield {"source_labels": [f"{_POD}_name"], "target_label": "pod"}
    yield {"target_label": "job", "replacement": job}
    yield {"target_label": "endpoint", "replacement": port}


def _keep(source_labels: list[str], regex: str) -> dict[str, Any]:
    return {"source_labels": source_labels, "regex": regex, "action": "keep"}


def _translated(relabeling: Object) -> dict[str, Any]:
    _refuse_others(relabeling, frozenset(_RELABELING_FIELDS))
    return {_RELABELING_FIELDS[field]: value for field, value in relabeling.items()}


def _refuse_others(given: Object, known: frozenset[str]) -> None:
    unknown = given.keys() - known
    if unknown:
        raise ValueError(f"the translation of PodMonitors does not know {', '.join(sorted(unknown))}: add it here")

"""The cluster as the commands see it: speculators, and what stands around one.

Invariant: a kind that the user may not read is named, and does not keep the rest from being shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aurora_cli.cluster.kubernetes_api import KubernetesApi, Object, speculators_path
from aurora_cli.doctor.facts import LeaseFacts, Snapshot, events_of, jobs_of, lease_of, pods_of
from aurora_cli.errors import ClusterError, Forbidden, NotFound
from aurora_cli.speculator import Speculator

LABELS = "app.kubernetes.io/name=aurora,app.kubernetes.io/instance="
"""Labels of a speculator's objects, without the speculator's name."""


@dataclass(frozen=True)
class Cluster:
    """One namespace of a cluster."""

    api: KubernetesApi
    namespace: str
    kubectl_flags: Sequence[str] = ()
    """The flags with which kubectl reaches the same cluster."""

    def speculator(self, name: str) -> Speculator:
        """Raises :class:`NotFound`, which names the speculators that there are."""
        try:
            return Speculator.of(self.api.get(speculators_path(self.namespace, name)))
        except NotFound:
            raise NotFound(self._no_such(name)) from None

    def _no_such(self, name: str) -> str:
        text = f"no AuroraSpeculator {name} in the namespace {self.namespace}"
        try:
            there = [found.name for found in self.speculators()]
        except ClusterError:
            return text
        return f"{text}; there {'is' if len(there) == 1 else 'are'} {', '.join(there[:10]) or 'none'}"

    def speculators(self, *, everywhere: bool = False) -> Sequence[Speculator]:
        """The speculators of the namespace, or of all namespaces, by name."""
        answer = self.api.get(speculators_path("" if everywhere else self.namespace))
        found = [Speculator.of_any(item) for item in answer.get("items", [])]
        return sorted(found, key=lambda one: (one.namespace, one.name))

    def patch(self, name: str, patch: Object, *, dry_run: bool) -> Object:
        """Merge ``patch`` into a speculator. Raises :class:`Conflict` when its resourceVersion is no longer the one."""
        return self.api.merge_patch(speculators_path(self.namespace, name), patch, dry_run=dry_run)

    def secret(self, name: str) -> Object:
        """A Secret, read with the user's own rights."""
        return self.api.get(f"/api/v1/namespaces/{self.namespace}/secrets/{name}")

    def snapshot(self, name: str, now: datetime | None = None) -> Snapshot:
        """A speculator and what stands around it, as far as the user may read it."""
        speculator = self.speculator(name)
        core, label = f"/api/v1/namespaces/{self.namespace}", f"{LABELS}{name}"
        unseen: list[str] = []

        def items(kind: str, path: str, query: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
            try:
                yield from self.api.get(path, query).get("items", [])
            except Forbidden:
                unseen.append(kind)

        about = f"involvedObject.kind=AuroraSpeculator,involvedObject.name={name}"
        pods = tuple(pods_of(items("pods", f"{core}/pods", {"labelSelector": label})))
        jobs_path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs"
        jobs = tuple(jobs_of(items("jobs", jobs_path, {"labelSelector": label})))
        events = tuple(events_of(items("events", f"{core}/events", {"fieldSelector": about})))
        lease = self._lease(speculator, unseen)
        return Snapshot(speculator, now or datetime.now(UTC), pods, jobs, events, tuple(unseen), lease)

    def _lease(self, speculator: Speculator, unseen: list[str]) -> LeaseFacts | None:
        """The Lease of the operator that acts on the speculator. It is in the operator's own namespace."""
        if speculator.operator_lease is None:
            return None
        namespace, name = speculator.operator_lease
        full_name = f"{namespace}/{name}"
        try:
            found = self.api.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}")
        except NotFound:
            found = {}
        except Forbidden:
            unseen.append(f"the operator's Lease {full_name}")
            return None
        return lease_of(full_name, found)

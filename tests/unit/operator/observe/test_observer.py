"""An observation is consistent, and leaves out the objects of other owners."""

from __future__ import annotations

import threading
from typing import Any, cast

from aurora_operator import kubernetes_api
from aurora_operator.observe.observer import Observer
from tests.unit.operator.worlds import OWNER


class SlowJobs:
    """Fake API server that is slow to list Jobs. The controller fails the Job meanwhile."""

    def __init__(self) -> None:
        self.failed = threading.Event()

    def list(self, kind: Any, namespace: str, labels: str) -> list[dict[str, Any]]:
        if kind == kubernetes_api.JOB:
            self.failed.wait(0.2)
            self.failed.set()
            metadata = {"name": "measurement", "ownerReferences": [{"uid": OWNER.uid}]}
            return [{"kind": "Job", "metadata": metadata, "status": {"failed": 1}}]
        if kind == kubernetes_api.POD:
            ended = {"status": {"words": "why"}} if self.failed.is_set() else {}
            return [{"kind": "Pod", "metadata": {"name": "measurement-0"}, **ended}]
        return []


async def test_a_failed_job_is_observed_with_its_pods_termination_message() -> None:
    observer = Observer(cast(Any, SlowJobs()), cast(Any, None), OWNER.namespace, OWNER.name)
    live = await observer._live_children(OWNER)
    assert live["Job", "measurement"]["status"] == {"failed": 1}
    assert live["Pod", "measurement-0"]["status"] == {"words": "why"}


class ForeignObjects:
    """Fake API server whose objects have our labels, but other owners."""

    def list(self, kind: Any, namespace: str, labels: str) -> list[dict[str, Any]]:
        references = {"none": [], "other": [{"uid": "another"}], "ours": [{"uid": OWNER.uid}]}
        return [
            {"kind": kind.kind, "metadata": {"name": name, "ownerReferences": owners}}
            for name, owners in references.items()
        ]

    def get(self, kind: Any, namespace: str, name: str) -> dict[str, Any]:
        return {"kind": "Secret", "metadata": {"name": name}, "data": {"agent-token": "c2VjcmV0"}}


async def test_only_owned_objects_count_as_children() -> None:
    observer = Observer(cast(Any, ForeignObjects()), cast(Any, None), OWNER.namespace, OWNER.name)
    live = await observer._live_children(OWNER)
    assert {name for kind, name in live if kind != "Pod"} == {"ours"}
    assert {name for kind, name in live if kind == "Pod"} == {"none", "other", "ours"}, "workloads own the pods"


async def test_the_token_of_a_foreign_secret_is_not_used() -> None:
    observer = Observer(cast(Any, ForeignObjects()), cast(Any, None), OWNER.namespace, OWNER.name)
    assert await observer._agent_token(OWNER) == ""

"""A look sees what belongs together."""

from __future__ import annotations

import threading
from typing import Any, cast

from aurora_operator import kubernetes_api
from aurora_operator.observe.observer import Observer
from tests.unit.operator.worlds import OWNER


class SlowJobs:
    """Stands in for an API server that is slow to list Jobs, which the controller fails meanwhile."""

    def __init__(self) -> None:
        self.failed = threading.Event()

    def list(self, kind: Any, namespace: str, labels: str) -> list[dict[str, Any]]:
        if kind == kubernetes_api.JOB:
            self.failed.wait(0.2)
            self.failed.set()
            return [{"kind": "Job", "metadata": {"name": "measurement"}, "status": {"failed": 1}}]
        if kind == kubernetes_api.POD:
            ended = {"status": {"words": "why"}} if self.failed.is_set() else {}
            return [{"kind": "Pod", "metadata": {"name": "measurement-0"}, **ended}]
        return []


async def test_a_job_that_failed_is_seen_with_what_its_pod_said() -> None:
    observer = Observer(cast(Any, SlowJobs()), cast(Any, None), OWNER.namespace, OWNER.name)
    live = await observer._children(OWNER)
    assert live["Job", "measurement"]["status"] == {"failed": 1}
    assert live["Pod", "measurement-0"]["status"] == {"words": "why"}

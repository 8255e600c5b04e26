"""What start.py tells the demo about the time before the demo began."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from tests.demo.jobs import JobState, Outcome


@dataclass(frozen=True)
class Handover:
    """Times are on the clock of time.monotonic(), which all processes of a machine share."""

    started: float
    """When `make demo` began."""
    packages_seconds: float | None = None
    """How long the installation of packages took. None: the demo was started without start.py."""
    kubernetes_since: float | None = None
    """When the build of Kubernetes began. None: no build runs beside the demo."""

    @classmethod
    def of(cls, started: float, outcomes: Mapping[str, Outcome]) -> Handover:
        """The times of the jobs of start.py, once the packages are installed."""
        packages, build = outcomes["packages"], outcomes.get("kubernetes")
        took = (packages.ended or 0.0) - (packages.started or 0.0)
        runs = build is not None and build.state is JobState.RUNNING
        return cls(started, max(0.0, took), build.started if build is not None and runs else None)

    @classmethod
    def from_json(cls, text: str | None) -> Handover:
        """The handover in `text`, or that of a demo that begins now.

        Raises:
            ValueError: The text is not a handover.
        """
        if text is None:
            return cls(time.monotonic())
        values = json.loads(text)
        if not isinstance(values, dict) or not values.keys() <= asdict(cls(0.0)).keys() or "started" not in values:
            raise ValueError("--handover is for tests.demo.start: run `make demo`")
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

"""Speculators whose Deployments live on a simulated API server, and operators of several versions that look at them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.children.inference_deployment import deployment
from aurora_operator.children.metadata import Owner
from aurora_operator.fleet import MAX_UNKNOWN_SECONDS, START_SECONDS, Fleet
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.kubernetes_views import deployed_template
from aurora_operator.observe.observed import Observed
from aurora_operator.operator_config import OperatorConfig
from aurora_operator.plan.operator_upgrade import UpgradeDecision, decide_upgrade
from tests.unit.operator.worlds import CONFIG, NOW, OWNER, observed, spec

__all__ = ["MAX_UNKNOWN_SECONDS", "Operator", "Speculator", "config", "running", "started"]


def config(version: int, max_concurrent: int = 1, max_failed: int = 1) -> OperatorConfig:
    """The settings of an operator with images of its own."""
    images = {"agent_image": f"agent:{version}"}
    limits = {"upgrade_max_concurrent": max_concurrent, "upgrade_max_failed": max_failed}
    return CONFIG.model_copy(update=images | limits)


@dataclass
class Speculator:
    """A speculator, its Deployment, and whether its pods are ready."""

    name: str
    spec: SpeculatorSpec = field(default_factory=lambda: spec(serving={"replicas": 2}))
    live: Object | None = None
    restarts: int = 0
    upgrading: bool = False
    """The pods restart because of an upgrade, and are not all ready yet."""
    unusable: bool = False
    """The spec cannot be used, or the speculator is being deleted."""
    gave_back: bool = False
    """The pods restart without a turn: the speculator was unusable since the restart began, or the restart failed."""
    spec_changed: bool = False
    """A user changed the spec since the Deployment was applied last."""

    @property
    def key(self) -> tuple[str, str]:
        return OWNER.namespace, self.name

    @property
    def owner(self) -> Owner:
        return replace(OWNER, name=self.name)

    @property
    def agent_image(self) -> str:
        assert self.live is not None
        images = {c["name"]: c["image"] for c in self.live["spec"]["template"]["spec"]["containers"]}
        return str(images["agent"])

    def change(self, **serving: Any) -> None:
        """A user changes ``spec.serving``."""
        before = self.spec
        parts = before.model_dump(by_alias=True, exclude_defaults=True)
        self.spec = spec(serving=parts["serving"] | serving)
        self.spec_changed |= before.serving != self.spec.serving

    def observe(self) -> Observed:
        return observed(owner=self.owner, spec=self.spec, deployed=deployed_template(copy.deepcopy(self.live)))

    def apply(self, made: UpgradeDecision) -> None:
        """The API server stores the Deployment. Pods restart when their template changes."""
        new = deployment(self.owner, self.spec, made.template, made.annotations, in_place=made.in_place)
        former = self.live
        changed = former is None or former["spec"]["template"] != new["spec"]["template"]
        if former is not None and changed:
            self.restarts += 1
            self.upgrading |= not self.spec_changed
        generation = (former["metadata"]["generation"] if former else 0) + int(changed)
        status = former["status"] if former is not None and not changed else {"observedGeneration": generation - 1}
        new["metadata"]["generation"] = generation
        self.live = new | {"status": status}
        self.spec_changed = False

    def become_whole(self) -> None:
        """All pods of the Deployment become ready."""
        if self.live is not None:
            replicas = self.live["spec"]["replicas"]
            counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas"), replicas)
            self.live["status"] = {"observedGeneration": self.live["metadata"]["generation"], **counts}
            self.upgrading = self.gave_back = False

    def lose_a_pod(self) -> None:
        if self.live is not None:
            self.live["status"]["readyReplicas"] = 0

    def miss_deadline(self) -> None:
        """The Deployment's controller gives up waiting for the pods."""
        assert self.live is not None
        timed_out = {"type": "Progressing", "status": "False", "message": "timed out progressing"}
        self.live["status"] = {"observedGeneration": self.live["metadata"]["generation"], "conditions": [timed_out]}

    def be_paused(self) -> None:
        """Somebody pauses the Deployment, whose controller then says nothing about progress."""
        assert self.live is not None
        paused = {"type": "Progressing", "status": "Unknown", "reason": "DeploymentPaused"}
        self.live["status"] = {"observedGeneration": self.live["metadata"]["generation"], "conditions": [paused]}


class Operator:
    """One process of the operator. ``clock`` returns seconds."""

    def __init__(self, settings: OperatorConfig, fleet: list[Speculator], clock: Callable[[], float]) -> None:
        self.config, self._fleet, self._clock = settings, Fleet(clock), clock
        for speculator in fleet:
            self._fleet.expect(speculator.key)

    def decide(self, speculator: Speculator, **more: Any) -> UpgradeDecision:
        """Look at a speculator and decide, as the reconciler does."""
        seen = replace(speculator.observe(), fleet=self._fleet.view(speculator.key), **more)
        made = decide_upgrade(seen, self.config, NOW + timedelta(seconds=self._clock()))
        self._fleet.report(speculator.key, made)
        return made

    def find_unusable(self, speculator: Speculator) -> None:
        """Look at a speculator whose spec cannot be used, or that is being deleted."""
        speculator.unusable, speculator.gave_back = True, speculator.upgrading
        self._fleet.report(speculator.key, None)

    def look(self, *speculators: Speculator) -> None:
        for speculator in speculators:
            speculator.apply(self.decide(speculator))


def started(settings: OperatorConfig, *fleet: Speculator) -> Operator:
    """An operator that has looked at each speculator once, and now gives turns."""
    now = [0.0]
    made = Operator(settings, list(fleet), lambda: now[0])
    made.look(*fleet)
    now[0] = START_SECONDS
    return made


def running(*names: str) -> list[Speculator]:
    """Speculators whose pods were made by the operator of version 1, and are ready."""
    fleet = [Speculator(name) for name in names]
    operator = started(config(1), *fleet)
    operator.look(*fleet)
    for speculator in fleet:
        speculator.become_whole()
    return fleet

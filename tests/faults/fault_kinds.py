"""The faults: how each is made, and how one sees that what it hit is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from aurora_protocol.agent_api import AGENT_PORT
from tests.faults.fault_rig import Resource, Stage
from tests.rig.fault_injection import Cut, cut, kill_container, kill_operator, reboot_node
from tests.rig.installation import SYSTEM

CUT_SECONDS = 15.0
STORE_PORT = 8333

Back = Callable[[], bool]
"""Whether what was hit is there again."""


@dataclass(frozen=True)
class Fault:
    """``strike`` makes it, and says how to see that it is over."""

    name: str
    strike: Callable[[Stage], Back]
    breaks: bool = False
    """Answers under way break: the engine that gave them is gone."""
    tolerated: int = 1
    """``rollout.analysis.failureLimit`` for the draft's life: an engine that ends in every state of it is too much for
    the default."""
    validating_only: bool = False


def _restarts(pod: Resource) -> dict[str, int]:
    return {c["name"]: c["restartCount"] for c in pod["status"].get("containerStatuses", [])}


def _find(stage: Stage, name: str) -> Resource | None:
    return next((pod for pod in stage.pods() if pod["metadata"]["name"] == name), None)


def _kill(stage: Stage, pod: Resource, container: str, namespace: str) -> Back:
    name, before = pod["metadata"]["name"], _restarts(pod)[container]
    kill_container(stage.aurora, name, container, namespace)

    def back() -> bool:
        found = _find(stage, name)
        return found is not None and _restarts(found).get(container, 0) > before

    return back


def _serving(stage: Stage, container: str) -> Resource:
    """A pod that has the version being rolled out, if there is one, and of these the one that was hit least: kubelet
    lets a container wait that ends again and again."""
    status = stage.status()
    rolled = status.get("rollout", {}).get("version")
    having = {pod["name"] for pod in status["pods"] if pod.get("version") == rolled}
    pods = stage.component("inference")
    among = [pod for pod in pods if pod["metadata"]["name"] in having] or pods
    return min(among, key=lambda pod: _restarts(pod).get(container, 0))


def _inference(container: str) -> Callable[[Stage], Back]:
    return lambda stage: _kill(stage, _serving(stage, container), container, stage.aurora.namespace)


def _trainer(stage: Stage) -> Back:
    (pod,) = stage.component("trainer")
    return _kill(stage, pod, "trainer", stage.aurora.namespace)


def _store(stage: Stage) -> Back:
    return _kill(stage, stage.store_pod(), "weed", SYSTEM)


def _operator(stage: Stage) -> Back:
    before = {pod["metadata"]["uid"] for pod in stage.operator_pods()}
    kill_operator(stage.aurora)
    return lambda: bool({pod["metadata"]["uid"] for pod in stage.operator_pods()} - before)


def _validator(stage: Stage) -> Back:
    """Kill the measurement once its engines run; it is over when the next attempt begins."""
    attempt = stage.status()["candidate"]["attempt"]
    stage.wait("a validator that runs", lambda: bool(_running(stage)), 60)
    time.sleep(5)
    kill_container(stage.aurora, _running(stage)[0]["metadata"]["name"], "validator")
    return lambda: stage.status()["candidate"]["attempt"] > attempt


def _running(stage: Stage) -> list[Resource]:
    return [pod for pod in stage.component("validator") if pod["status"]["phase"] == "Running"]


def _no_agents(stage: Stage) -> Back:
    with cut(stage.aurora, stage.component("inference"), Cut("INPUT", AGENT_PORT)):
        time.sleep(CUT_SECONDS)
    return lambda: True


def _no_store(stage: Stage) -> Back:
    pods = [*stage.component("inference"), *stage.component("trainer"), *_running(stage)]
    with cut(stage.aurora, [*pods, *stage.operator_pods()], Cut("OUTPUT", STORE_PORT)):
        time.sleep(CUT_SECONDS)
    return lambda: True


def _reboot(stage: Stage) -> Back:
    before = {pod["metadata"]["uid"]: sum(_restarts(pod).values()) for pod in stage.pods()}
    reboot_node(stage.aurora)

    def back() -> bool:
        now = {pod["metadata"]["uid"]: sum(_restarts(pod).values()) for pod in stage.pods()}
        return all(count > before.get(uid, -1) for uid, count in now.items())

    return back


FAULTS = (
    Fault("kill -9 operator", _operator),
    Fault("kill -9 agent", _inference("agent")),
    Fault("kill -9 trainer", _trainer),
    Fault("kill -9 validator", _validator, validating_only=True),
    Fault("kill -9 store", _store),
    Fault("operator cut off from agents, 15 s", _no_agents),
    Fault("everyone cut off from the store, 15 s", _no_store),
    Fault("kill -9 sglang", _inference("sglang"), breaks=True, tolerated=9),
    Fault("node reboot", _reboot, breaks=True),
)

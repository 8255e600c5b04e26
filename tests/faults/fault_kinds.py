"""The faults: how to cause each, and how to see that the part it hits has recovered."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from aurora_protocol.agent_api import AGENT_PORT
from tests.faults.fault_rig import FaultRig
from tests.rig.fault_injection import PacketFilter, drop_packets, kill_container, kill_operator, reboot_node
from tests.rig.installation import SYSTEM_NAMESPACE
from tests.rig.running_speculator import Resource

DROP_SECONDS = 15.0
STORE_PORT = 8333
ENGINE_START_SECONDS = 5.0
"""From the start of a validator's pod until its engines run."""

HasRecovered = Callable[[], bool]
"""Returns whether the part that the fault hit runs again."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    cause: Callable[[FaultRig], HasRecovered]
    """Causes the fault, and returns the check for recovery from it."""
    breaks_requests: bool = False
    """Whether requests in flight break, because the fault ends the engine that answers them."""
    failure_limit: int = 1
    """``rollout.analysis.failureLimit`` while this fault is tested. The default does not allow for an engine that
    crashes in every state of a rollout."""
    validating_only: bool = False
    """Whether the fault can be caused only while a candidate is measured."""


def _restart_counts(pod: Resource) -> dict[str, int]:
    return {c["name"]: c["restartCount"] for c in pod["status"].get("containerStatuses", [])}


def _pod_named(rig: FaultRig, name: str) -> Resource | None:
    return next((pod for pod in rig.pods() if pod["metadata"]["name"] == name), None)


def _kill_container(rig: FaultRig, pod: Resource, container: str, namespace: str) -> HasRecovered:
    name, restarts_before = pod["metadata"]["name"], _restart_counts(pod)[container]
    kill_container(rig.aurora, name, container, namespace)

    def has_restarted() -> bool:
        current = _pod_named(rig, name)
        return current is not None and _restart_counts(current).get(container, 0) > restarts_before

    return has_restarted


def _inference_pod_to_hit(rig: FaultRig, container: str) -> Resource:
    """The inference pod to hit: one with the version that is being rolled out, if there is one.

    Among these pods, the one whose container restarted least, because the kubelet delays the restart of a container
    that ends often.
    """
    status = rig.status()
    rolled_version = status.get("rollout", {}).get("version")
    updated = {pod["name"] for pod in status["pods"] if pod.get("version") == rolled_version}
    pods = rig.component_pods("inference")
    candidates = [pod for pod in pods if pod["metadata"]["name"] in updated] or pods
    return min(candidates, key=lambda pod: _restart_counts(pod).get(container, 0))


def _kill_in_inference_pod(container: str) -> Callable[[FaultRig], HasRecovered]:
    return lambda rig: _kill_container(rig, _inference_pod_to_hit(rig, container), container, rig.aurora.namespace)


def _kill_trainer(rig: FaultRig) -> HasRecovered:
    (pod,) = rig.component_pods("trainer")
    return _kill_container(rig, pod, "trainer", rig.aurora.namespace)


def _kill_store(rig: FaultRig) -> HasRecovered:
    return _kill_container(rig, rig.store_pod(), "weed", SYSTEM_NAMESPACE)


def _kill_operator(rig: FaultRig) -> HasRecovered:
    before = {pod["metadata"]["uid"] for pod in rig.operator_pods()}
    kill_operator(rig.aurora)
    return lambda: bool({pod["metadata"]["uid"] for pod in rig.operator_pods()} - before)


def _kill_validator(rig: FaultRig) -> HasRecovered:
    """Kill the validator once its engines run. The fault is over when the next attempt begins."""
    attempt = rig.status()["candidate"]["attempt"]
    rig.wait_until("a validator runs", lambda: bool(_running_validators(rig)), 60)
    time.sleep(ENGINE_START_SECONDS)
    kill_container(rig.aurora, _running_validators(rig)[0]["metadata"]["name"], "validator")
    return lambda: rig.status()["candidate"]["attempt"] > attempt


def _running_validators(rig: FaultRig) -> list[Resource]:
    return [pod for pod in rig.component_pods("validator") if pod["status"]["phase"] == "Running"]


def _cut_off_agents(rig: FaultRig) -> HasRecovered:
    with drop_packets(rig.aurora, rig.component_pods("inference"), PacketFilter("INPUT", AGENT_PORT)):
        time.sleep(DROP_SECONDS)
    return lambda: True


def _cut_off_store(rig: FaultRig) -> HasRecovered:
    pods = [*rig.component_pods("inference"), *rig.component_pods("trainer"), *_running_validators(rig)]
    with drop_packets(rig.aurora, [*pods, *rig.operator_pods()], PacketFilter("OUTPUT", STORE_PORT)):
        time.sleep(DROP_SECONDS)
    return lambda: True


def _reboot_node(rig: FaultRig) -> HasRecovered:
    before = {pod["metadata"]["uid"]: sum(_restart_counts(pod).values()) for pod in rig.pods()}
    reboot_node(rig.aurora)

    def every_pod_restarted() -> bool:
        now = {pod["metadata"]["uid"]: sum(_restart_counts(pod).values()) for pod in rig.pods()}
        return all(count > before.get(uid, -1) for uid, count in now.items())

    return every_pod_restarted


def _drain(rig: FaultRig) -> HasRecovered:
    """Evict every pod but the store's. The pods that take their places find room, as on another node."""
    drained = {pod["metadata"]["uid"] for pod in _pods_to_drain(rig)}

    def every_pod_was_replaced() -> bool:
        left = [pod["metadata"] for pod in _pods_to_drain(rig) if pod["metadata"]["uid"] in drained]
        for pod in left:
            rig.evict(pod["name"], pod["namespace"])
        return not left

    return every_pod_was_replaced


def _pods_to_drain(rig: FaultRig) -> list[Resource]:
    aurora = [*rig.component_pods("inference"), *rig.component_pods("trainer"), *_running_validators(rig)]
    return [*aurora, *rig.operator_pods()]


FAULTS = (
    Fault("kill -9 operator", _kill_operator),
    Fault("kill -9 agent", _kill_in_inference_pod("agent")),
    Fault("kill -9 trainer", _kill_trainer),
    Fault("kill -9 validator", _kill_validator, validating_only=True),
    Fault("kill -9 store", _kill_store),
    Fault("no network from operator to agents, 15 s", _cut_off_agents),
    Fault("no network to the store, 15 s", _cut_off_store),
    Fault("kill -9 sglang", _kill_in_inference_pod("sglang"), breaks_requests=True, failure_limit=9),
    Fault("drain", _drain),
    Fault("node reboot", _reboot_node, breaks_requests=True),
)

"""Do the inference pods run, and do they serve what they should? Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final

from aurora_api.v1alpha1.conditions import ConditionStatus, ConditionType
from aurora_cli.doctor.facts import INFERENCE, TRAINER, VALIDATOR, ContainerTrouble, PodFacts, Snapshot
from aurora_cli.doctor.finding import Finding, Remedy, Severity, abnormal, condition_text

RECOVERED: Final = timedelta(minutes=10)
"""A container that has run for so long has recovered from its last end. Kubernetes then ends its backoff."""
LITTLE_GAIN: Final = 1.1
"""An estimated speedup up to this may not make up for what the plugin costs (docs/explanation/never-slower.md). The
status rounds it to one decimal, so ``~1.1x`` is anything from 1.05 to 1.15."""
SETTLED: Final = timedelta(hours=1)
"""A new speculator's draft has learned too little to say what speculation gains."""
_WHAT: Final = {INFERENCE: "an inference pod", TRAINER: "the trainer's pod", VALIDATOR: "a measurement's pod"}
_CONTAINER: Final[Mapping[str, Remedy]] = {
    "ImagePullBackOff": Remedy(
        "cannot pull its image",
        "Check the image's name, and the pull Secrets: images.speculatorPullSecrets of the chart, or imagePullSecrets"
        " in the pod template.",
        ("kubectl -n {ns} describe pod {pod}",),
    ),
    "CreateContainerConfigError": Remedy(
        "needs a Secret or a ConfigMap that does not exist",
        "Create the object that the message names.",
        ("kubectl -n {ns} describe pod {pod}",),
    ),
    "OOMKilled": Remedy(
        "was killed because it used more memory than its limit",
        "Raise the container's memory limit in the pod template, or lower what it keeps (see the sizing guide).",
        (
            "kubectl -n {ns} logs {pod} -c {container} --previous --tail=50",
            "kubectl -n {ns} edit auroraspeculator {name}",
        ),
    ),
    "CrashLoopBackOff": Remedy(
        "exits again and again",
        "Read why in its log. A gated model needs HF_TOKEN in the pod template.",
        ("kubectl -n {ns} logs {pod} -c {container} --previous --tail=50",),
    ),
    "Evicted": Remedy(
        "was evicted by its node",
        "The node ran out of disk or memory: see the message, and the sizes of the pod's volumes.",
        ("kubectl -n {ns} describe pod {pod}",),
    ),
}
_SAME: Final = {
    "ErrImagePull": "ImagePullBackOff",
    "InvalidImageName": "ImagePullBackOff",
    "ErrImageNeverPull": "ImagePullBackOff",
    "RunContainerError": "CrashLoopBackOff",
    "CreateContainerError": "CreateContainerConfigError",
}
_OTHER_CONTAINER = Remedy("does not run", "", ("kubectl -n {ns} describe pod {pod}",))
_PLACE: Final = Remedy(
    "finds no node",
    "Free a node, add one, or lower the pod's requests. Pods that run keep serving.",
    ("kubectl -n {ns} describe pod {pod}", "kubectl describe nodes"),
)
_SERVING: Final[Mapping[str, Remedy]] = {
    "WaitingForDraft": Remedy(
        "the trainer has not made the initial draft yet",
        "The trainer loads the target first. A gated model needs HF_TOKEN in training.template.",
        ("kubectl -n {ns} logs deployment/{name}-trainer --tail=50",),
        Severity.WARNING,
    ),
    "PodsUpdating": Remedy(
        "pods are being replaced by pods of the current template",
        "A model load takes minutes. If it stays, a new pod does not become ready.",
        (
            "kubectl -n {ns} rollout status deployment/{name}",
            "kubectl -n {ns} logs deployment/{name} -c sglang --tail=50",
        ),
        Severity.WARNING,
    ),
    "Scaling": Remedy(
        "fewer pods exist than are wanted",
        "If the message names a quota, raise the quota or lower serving.replicas.",
        ("kubectl -n {ns} describe resourcequotas", "kubectl -n {ns} scale auroraspeculator {name} --replicas=N"),
    ),
    "PodsPending": Remedy(
        "the cluster has no room for a pod",
        "Add a node, lower the pod's requests, or lower serving.replicas. The other pods keep serving.",
        ("kubectl -n {ns} get pods -l app.kubernetes.io/instance={name} -o wide", "kubectl describe nodes"),
    ),
    "PodsNotReady": Remedy(
        "fewer pods are ready than are wanted",
        "The engine loads its model, or its log says why it cannot.",
        (
            "kubectl -n {ns} describe pods -l app.kubernetes.io/instance={name},app.kubernetes.io/component=inference",
            "kubectl -n {ns} logs deployment/{name} -c sglang --tail=50",
        ),
    ),
    "SwapsPending": Remedy(
        "some pods do not serve the right version yet",
        "A swap takes seconds. If it stays, the agent's log says why.",
        ("kubectl -n {ns} logs deployment/{name} -c agent --tail=50",),
        Severity.WARNING,
    ),
}
_OTHER = Remedy("the pods do not serve as they should", "", ("kubectl -n {ns} describe auroraspeculator {name}",))
_UNREACHABLE = Remedy(
    "the operator cannot reach the agent of a pod that runs",
    "A NetworkPolicy of yours, or a service mesh, may close port 8471 to the operator.",
    ("kubectl -n {ns} get networkpolicies", "kubectl -n {ns} logs deployment/{name} -c agent --tail=50"),
)
_SLOW = Remedy(
    "serving is slower than without speculation, by the gate's measurement of the active version",
    "A fixed shape proposes tokens where they do not pay: let the engine choose.",
    (
        "kubectl -n {ns} patch auroraspeculator {name} --type=merge"
        """ -p '{"spec":{"draft":{"shape":null,"branching":null,"draftTokens":null}}}'""",
    ),
    Severity.WARNING,
)
_GAINS_LITTLE = Remedy(
    "speculation gains little here",
    "The estimate compares with the pods' own rounds without proposals. Where speculation gained nothing, pods were"
    " measured 4 to 13 % slower than an engine without speculation (a small model on a CPU). Look again once the draft"
    " has learned more. draft.lookup: Speculator proposes more where requests resemble each other, and"
    " docs/how-to/lookup.md says what it gives away. If the figure stays, serve this traffic with an engine without"
    " speculation, or compare the two under your own load.",
    ("kubectl aurora status {name} -n {ns}",),
    Severity.NOTE,
)
_RATIO = re.compile(r"~?([0-9]+(?:\.[0-9]+)?)x")


def pods_in_trouble(snapshot: Snapshot) -> Iterator[Finding]:
    """Containers that do not run or were killed lately, one finding for each pod of a kind with the same trouble."""
    seen = set[tuple[str, str, str]]()
    for pod in snapshot.pods:
        if pod.terminating:
            continue
        for trouble in pod.troubles:
            same = (pod.component, trouble.container, trouble.reason)
            since = trouble.running_since
            recovered = since is not None and snapshot.now - since >= RECOVERED
            if same not in seen and not recovered:
                seen.add(same)
                yield _container_finding(snapshot, pod, trouble)


def _container_finding(snapshot: Snapshot, pod: PodFacts, trouble: ContainerTrouble) -> Finding:
    remedy = _CONTAINER.get(_SAME.get(trouble.reason, trouble.reason), _OTHER_CONTAINER)
    part = f"container {trouble.container} of " if trouble.container else ""
    found = remedy.finding(
        snapshot,
        f"pod {pod.name}: {trouble.reason}"
        + (f", {trouble.restarts} restarts" if trouble.restarts else "")
        + (f": {trouble.message}" if trouble.message else ""),
    )
    return _about_pod(found, pod, f"{part}{_WHAT.get(pod.component, 'a pod')} {found.title}", trouble.container)


def pods_without_node(snapshot: Snapshot) -> Iterator[Finding]:
    """Pods that the scheduler cannot place, one finding for each kind."""
    for component in _WHAT:
        waiting = [pod for pod in snapshot.pods_of(component) if pod.unschedulable]
        if waiting:
            number = (
                f"{len(waiting)} pods wait, first {waiting[0].name}" if len(waiting) > 1 else f"pod {waiting[0].name}"
            )
            found = _PLACE.finding(snapshot, f"{number}: {waiting[0].unschedulable}")
            yield _about_pod(found, waiting[0], f"{_WHAT[component]} {found.title}", "")


def _about_pod(found: Finding, pod: PodFacts, title: str, container: str) -> Finding:
    commands = [one.replace("{pod}", pod.name).replace("{container}", container or "sglang") for one in found.commands]
    return Finding(found.severity, title, found.evidence, found.advice, tuple(commands))


def serving_not_ready(snapshot: Snapshot) -> Iterator[Finding]:
    """The condition ServingReady, unless the state of a pod explains it already."""
    condition = abnormal(snapshot, ConditionType.SERVING_READY, ConditionStatus.FALSE)
    if condition is None or any(pod.cannot_run for pod in snapshot.pods_of(INFERENCE)):
        return
    if condition.reason == "WaitingForDraft" and any(pod.cannot_run for pod in snapshot.pods_of(TRAINER)):
        return
    yield _SERVING.get(condition.reason, _OTHER).finding(snapshot, condition_text(condition))


def agents_unreachable(snapshot: Snapshot) -> Iterator[Finding]:
    """Pods whose agent does not answer the operator."""
    pods = [pod.name for pod in snapshot.speculator.status.pods if pod.state == "AgentUnreachable"]
    if pods:
        yield _UNREACHABLE.finding(snapshot, f"AgentUnreachable: {', '.join(pods)}")


def slower_than_off(snapshot: Snapshot) -> Iterator[Finding]:
    """A fixed shape whose measured speedup is below 1. Engines with a fixed shape estimate none."""
    active = snapshot.speculator.status.active
    text = (active.speedup if active else None) or ""
    ratio = _ratio(text)
    if ratio is not None and ratio < 1.0 and _has_fixed_shape(snapshot):
        yield _SLOW.finding(snapshot, f"status.active.speedup {text}")


def gains_little(snapshot: Snapshot) -> Iterator[Finding]:
    """An engine that chooses the size of its rounds, and estimates that they gain next to nothing."""
    one = snapshot.speculator
    text = one.status.estimated_speedup or ""
    settled = one.created is not None and snapshot.now - one.created >= SETTLED
    ratio = _ratio(text)
    if ratio is not None and ratio <= LITTLE_GAIN and settled and not _has_fixed_shape(snapshot):
        yield _GAINS_LITTLE.finding(snapshot, f"status.estimatedSpeedup {text}, of about the last minute with traffic")


def _has_fixed_shape(snapshot: Snapshot) -> bool:
    draft = snapshot.speculator.section("draft")
    return draft.get("shape") == "Fixed" or (draft.get("branching") or 1) != 1


def _ratio(speedup: str) -> float | None:
    """The number of a speedup of the status, such as ``~1.0x`` or ``0.92x (0.90-0.95)``. None for another text."""
    found = _RATIO.match(speedup)
    return None if found is None else float(found[1])

"""Builds the rollout's input, a :class:`World`, from an observation. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from aurora_operator.children.inference_deployment import choice_digest
from aurora_operator.observe.observed import Observed, PodView
from aurora_operator.plan import lending
from aurora_operator.plan.candidate import ValidationDecision
from aurora_operator.plan.rollout.world import Pod, RolloutPolicy, World
from aurora_protocol.agent_api import LiveCounters, SwapStatus


def rollout_pods(observed: Observed) -> tuple[Pod, ...]:
    """The pods that are not terminating, lent replicas included."""
    return tuple(rollout_pod(view) for view in observed.pods if not view.terminating)


def rollout_pod(view: PodView) -> Pod:
    agent = view.agent
    return Pod(
        name=view.name,
        ready=view.ready and agent is not None and agent.engine_ready,
        kubernetes_ready=view.ready,
        version=agent.version if agent else None,
        checksum=agent.checksum if agent else None,
        swap=agent.swap if agent else SwapStatus(),
        boot=agent.boot if agent else "",
        lone_restarts=view.lone_restarts,
        counters=agent.live if agent else LiveCounters(),
    )


def world_of(
    observed: Observed, pods: Iterable[Pod], validation: ValidationDecision, rejected: frozenset[int], now: datetime
) -> World:
    """The world of the pods that serve or start.

    Withdrawn pods are left out: the rollout must neither miss them nor ask them for anything. Pods that wait for a node
    are left out too, because they may wait forever. They take the active version once they start.

    Args:
        rejected: versions that are never rolled out again.
    """
    store, channel, pin = observed.store, observed.store.channel, observed.spec.rollout.pin
    assert channel is not None, "called only while there is a channel"
    away, next_version = lending.withdrawn_pods(observed), validation.next_version
    absent = away | {view.name for view in observed.pods if view.waits_for_node}
    invalid = bool(observed.spec_fault)
    return World(
        now=now,
        active=channel.active,
        previous=channel.previous,
        rejected=frozenset(channel.rejected),
        channel_reason=channel.reason,
        channel_message=channel.message,
        epoch=channel.epoch,
        pods=tuple(pod for pod in pods if pod.name not in absent),
        serving_digest=choice_digest(observed.owner, observed.spec),
        policy=RolloutPolicy.of(observed.spec.rollout),
        paused=_pause_reason(observed),
        next_version=next_version if next_version not in rejected and not away and not invalid else None,
        newest_version=max(store.registrations.keys() - rejected, default=0),
        promotable=frozenset(v for v in store.registrations if v not in rejected and store.promotion_evidence(v)),
        pinned_version=pin if pin is not None and store.may_be_pinned(pin) else None,
        pin_set=pin is not None,
        abort=observed.abort,
        observation_gap=observed.observation_gap,
        refused_by_epoch=observed.refused_by_epoch,
    )


def _pause_reason(observed: Observed) -> str:
    deployed = observed.deployed
    if observed.spec_fault:
        return "the spec cannot be used"
    if deployed is not None and deployed.restarting_since is not None and not deployed.whole:
        return "the pods restart with the upgraded operator's template"
    return "spec.rollout.paused is true" if observed.spec.rollout.paused else ""

"""kopf only watches and wakes: nothing makes it write to our objects."""

from __future__ import annotations

from typing import Any, cast

import kopf
import pytest

from aurora_api.v1alpha1.conditions import ConditionType
from aurora_operator.children.metadata import COMMON_LABELS, INSTANCE_LABEL, child
from aurora_operator.errors import ConfigError, KubernetesError, NotFound
from aurora_operator.kubernetes_api import CHILDREN, SPECULATOR, KubernetesApi, Object, Resource
from aurora_operator.main import _readable, handler_registry
from aurora_operator.speculator_tasks import SpeculatorTasks
from tests.unit.operator.fake_api import DENIED, UNAVAILABLE
from tests.unit.operator.worlds import OWNER


class Wakes:
    """Stands for the tasks, and records who is woken."""

    def __init__(self) -> None:
        self.woken: list[tuple[str, str]] = []
        self.listed: list[str] = []
        self.at_rest: list[bool] = []
        self.stopped = False

    def wake(self, namespace: str, name: str, *, at_rest: bool = False) -> None:
        self.woken.append((namespace, name))
        self.at_rest.append(at_rest)

    def child_listed(self, namespace: str, name: str) -> None:
        self.listed.append(name)

    async def stop(self) -> None:
        self.stopped = True


def registry_of(wakes: Wakes) -> Any:
    """kopf's registry, whose collections of handlers have no public name."""
    return handler_registry(cast(SpeculatorTasks, wakes))


def watched(registry: Any) -> dict[tuple[str, str, str], Any]:
    """The handlers of events by group, version and plural."""
    handlers = registry._watching.get_all_handlers()
    found = {(each.selector.group, each.selector.version, each.selector.any_name): each for each in handlers}
    assert len(found) == len(handlers)
    return found


def test_the_speculator_and_each_kind_of_child_are_watched_and_nothing_else() -> None:
    kinds = {
        (group, version, resource.plural)
        for resource in (SPECULATOR, *CHILDREN)
        for group, _, version in [resource.api_version.rpartition("/")]
    }
    assert watched(registry_of(Wakes())).keys() == kinds


def test_no_handler_makes_kopf_write_a_finalizer_or_an_annotation() -> None:
    """Only handlers of changes, daemons, timers and webhooks do, and indexes keep objects in memory."""
    registry = registry_of(Wakes())
    for handlers in (registry._changing, registry._spawning, registry._indexing, registry._webhooks):
        assert handlers.get_all_handlers() == []


async def test_an_event_wakes_the_speculator_that_it_concerns() -> None:
    wakes = Wakes()
    handlers = watched(registry_of(wakes))
    for (_, _, plural), handler in handlers.items():
        metadata = child(OWNER, "v1", "Any", "chat-any")["metadata"]
        name = OWNER.name if plural == SPECULATOR.plural else metadata["name"]
        await handler.fn(type="MODIFIED", namespace="team", name=name, labels=metadata["labels"], event={}, body={})
    assert wakes.woken == [("team", OWNER.name)] * len(handlers)
    assert not any(wakes.at_rest)
    await handlers["", "v1", "pods"].fn(type="ADDED", namespace="team", name="x", labels={"of": "somebody else"})
    assert len(wakes.woken) == len(handlers)


AT_REST = {"generation": 2, "observedGeneration": 2, "phase": "Idle", "Ready": "True", "Stalled": "False"}


@pytest.mark.parametrize(
    ("change", "at_rest"),
    [
        ({}, True),
        ({"generation": 3}, False),
        ({"phase": "Judging"}, False),
        ({"Ready": "False"}, False),
        ({"Stalled": "True"}, False),
        ({"deletionTimestamp": "2026-12-04T10:00:00Z"}, False),
    ],
)
async def test_a_list_tells_who_is_at_rest_and_its_children_are_no_news(change: dict[str, Any], at_rest: bool) -> None:
    wakes, given = Wakes(), {**AT_REST, **change}
    handlers = watched(registry_of(wakes))
    metadata = {key: given[key] for key in ("generation", "deletionTimestamp") if key in given}
    conditions = [
        {
            "type": kind,
            "status": given.get(kind, "False" if kind == "Reconciling" else "True"),
            "reason": "Any",
            "lastTransitionTime": "2026-12-04T10:00:00Z",
        }
        for kind in ConditionType
    ]
    status = {
        "observedGeneration": given["observedGeneration"],
        "conditions": conditions,
        "rollout": {"phase": given["phase"]},
    }
    resource = handlers["aurora.dev", "v1alpha1", SPECULATOR.plural]
    await resource.fn(type=None, namespace="team", name="chat", body={"metadata": metadata, "status": status})
    assert wakes.at_rest == [at_rest]
    pods = handlers["", "v1", "pods"]
    await pods.fn(type=None, namespace="team", name="x", labels={INSTANCE_LABEL: "chat"})
    assert (wakes.woken, wakes.listed) == ([("team", "chat")], ["chat"])


async def test_at_the_start_only_children_of_ours_are_watched_and_the_end_stops_the_tasks() -> None:
    wakes, settings = Wakes(), kopf.OperatorSettings()
    for handler in registry_of(wakes)._activities.get_all_handlers():
        if handler.activity.value in ("startup", "cleanup"):
            await handler.fn(settings=settings)
    ours = ",".join(f"{key}={value}" for key, value in COMMON_LABELS.items())
    assert set(settings.watching.label_selectors.values()) == {ours}
    assert len(settings.watching.label_selectors) == len(CHILDREN)
    assert settings.scanning.disabled, "the operator may not read namespaces and definitions"
    assert wakes.stopped
    labels = child(OWNER, "v1", "Any", "chat-any")["metadata"]["labels"]
    assert labels.items() >= COMMON_LABELS.items()
    assert labels[INSTANCE_LABEL] == OWNER.name


class Namespaces(KubernetesApi):
    """An API server that refuses to list in some namespaces."""

    def __init__(self, **refused: Exception) -> None:
        self._refused = refused

    async def list(self, resource: Resource, namespace: str, labels: str = "") -> list[Object]:
        if namespace in self._refused:
            raise self._refused[namespace]
        return []


async def test_namespaces_that_cannot_be_read_are_left_out_and_none_is_an_error() -> None:
    api = Namespaces(gone=DENIED, away=UNAVAILABLE)
    assert await _readable(api, ("team", "gone", "other")) == ("team", "other")
    with pytest.raises(ConfigError, match="gone"):
        await _readable(api, ("gone",))
    with pytest.raises(KubernetesError):  # nobody would look at "away" again before a restart
        await _readable(api, ("team", "away"))


async def test_without_the_resource_definition_the_process_ends_and_is_started_again() -> None:
    """kopf would go on without it, and watch no speculator even after it is installed."""
    assert await _readable(Namespaces(), ()) == ()
    with pytest.raises(ConfigError, match="CRD"):
        await _readable(Namespaces(**{"": NotFound("no such resource", 404)}), ())

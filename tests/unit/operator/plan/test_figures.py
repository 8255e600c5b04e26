"""What the status says about the devices that training holds and that speculation saves."""

from __future__ import annotations

from typing import Any

import pytest

from aurora_api.v1alpha1.template import PodTemplate
from aurora_operator.children.common_pod import gpus_of
from aurora_operator.observe.observed import PodView
from aurora_protocol.agent_api import MeasurementPhase, MeasurementStatus, SavedTime
from tests.unit.operator.worlds import agent, observed, pod, spec, status


@pytest.mark.parametrize(
    ("resources", "found"),
    [
        ({"limits": {"nvidia.com/gpu": 2, "cpu": "8"}}, {"nvidia.com/gpu": 2}),
        ({"limits": {"amd.com/gpu": "1"}}, {"amd.com/gpu": 1}),
        ({"limits": {"cpu": 4}}, {}),
        ({"limits": {"nvidia.com/gpu": "1k"}}, {}),
        ({"limits": {"nvidia.com/gpu": "9" * 5000}}, {}),
        ({"limits": {"nvidia.com/gpu": 0}}, {}),
        ({"limits": "all"}, {}),
        (None, {}),
    ],
)
def test_gpus_are_counted_only_where_the_template_gives_a_plain_number(resources: Any, found: dict[str, int]) -> None:
    other = {"name": "other", "resources": {"limits": {"nvidia.com/gpu": 8}}}
    template = PodTemplate(spec={"containers": [other, {"name": "trainer", "resources": resources}]})
    assert gpus_of(spec(), template, "trainer") == found


def gpu_spec(**training: Any) -> Any:
    gpu = {"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}}
    engine, trainer = (
        {"template": {"spec": {"containers": [{"name": name, "resources": gpu}]}}} for name in ("sglang", "trainer")
    )
    return spec(serving=engine, training=trainer | training)


def saving(name: str, share: float, seconds: float = 90000) -> PodView:
    return pod(name, 0, agent=agent(name, 0, saved_time=SavedTime(share=share, observed_seconds=seconds)))


def figures(*pods: PodView, **training: Any) -> tuple[str | None, str | None]:
    shown = status(observed(spec=gpu_spec(**training), pods=pods)).training
    return shown.devices, shown.saved_devices


def test_the_status_shows_what_training_holds_and_what_speculation_saves() -> None:
    pods = (saving("chat-a", 0.5), saving("chat-b", 0.234))
    assert figures(*pods) == ("1 nvidia.com/gpu", "0.73 nvidia.com/gpu")
    assert figures(*pods, suspended=True) == (None, "0.73 nvidia.com/gpu")
    without = status(observed(pods=pods)).training
    assert (without.devices, without.saved_devices) == (None, None)


@pytest.mark.parametrize(
    "pods",
    [
        pytest.param((), id="no pod"),
        pytest.param((saving("chat-a", 0.5), pod("chat-b", 0)), id="an engine of a fixed shape"),
        pytest.param((saving("chat-a", 0.5), pod("chat-b", 0, agent=None)), id="an agent that does not answer"),
        pytest.param((saving("chat-a", 0.5), saving("chat-b", 0.5, 599)), id="a young engine"),
    ],
)
def test_a_saving_that_one_pod_does_not_tell_is_unknown(pods: tuple[PodView, ...]) -> None:
    assert figures(*pods) == ("1 nvidia.com/gpu", None)


def test_pods_that_serve_nobody_do_not_count() -> None:
    lent = MeasurementStatus(measurement="chat-validate-v1-1", phase=MeasurementPhase.MEASURING)
    others = (
        pod("chat-b", 0, ready=False, agent=agent("chat-b", 0, boot="", measurement=lent)),
        pod("chat-c", 0, terminating=True),
        pod("chat-d", 0, ready=False, agent=None),
    )
    assert figures(saving("chat-a", 0.5), *others)[1] == "0.50 nvidia.com/gpu"

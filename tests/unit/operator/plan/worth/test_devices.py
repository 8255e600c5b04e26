"""How many devices a container gets, by the template that a user wrote."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.template import PodTemplate
from aurora_operator.plan.worth.devices import Devices, devices_of


def devices(resources: Any) -> Devices | None:
    other = {"name": "other", "resources": {"limits": {"cpu": "64"}}}
    return devices_of(PodTemplate(spec={"containers": [other, {"name": "trainer", "resources": resources}]}), "trainer")


@pytest.mark.parametrize(
    ("resources", "kind", "count"),
    [
        ({"limits": {"nvidia.com/gpu": 2, "cpu": "8"}}, "nvidia.com/gpu", "2"),
        ({"limits": {"amd.com/gpu": "1"}}, "amd.com/gpu", "1"),
        ({"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 1}}, "nvidia.com/gpu", "1"),
        ({"limits": {"cpu": 4}, "requests": {"cpu": 2}}, "cpu", "4"),
        ({"requests": {"cpu": "500m"}}, "cpu", "0.5"),
        ({"requests": {"cpu": "1.5"}}, "cpu", "1.5"),
    ],
)
def test_gpus_count_before_cores_and_limits_before_requests(resources: Any, kind: str, count: str) -> None:
    assert devices(resources) == Devices(kind, Decimal(count))


@pytest.mark.parametrize(
    "resources",
    [
        None,
        {},
        {"requests": {"memory": "1Gi"}},
        {"limits": {"cpu": "many"}},
        {"limits": {"cpu": 0}},
        {"limits": {"nvidia.com/mig-1g.10gb": 1}},
        {"limits": {"nvidia.com/gpu": 1, "rdma/hca": 1}},
        {"limits": {"nvidia.com/gpu": "all", "cpu": "4"}},
        {"limits": {"cpu": "4"}, "claims": [{"name": "gpu"}]},
    ],
)
def test_a_count_that_the_template_does_not_say_is_unknown(resources: Any) -> None:
    assert devices(resources) is None
    assert devices_of(PodTemplate(), "trainer") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["limits", "requests", "claims", "cpu", "nvidia.com/gpu"]), inner, max_size=3)
    ),
)


@given(JSON)
def test_any_template_has_devices_or_none(resources: Any) -> None:
    found = devices(resources)
    assert found is None or found.count > 0

"""Merging the user's pod template: general laws first, then cases that caused bugs in other projects."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aurora_operator.children.common_pod import merge

NAMES = st.sampled_from(["sglang", "agent", "extra", "more"])
SCALARS = st.one_of(st.integers(0, 9), st.sampled_from(["a", "b"]))
ENV = st.lists(st.fixed_dictionaries({"name": NAMES, "value": SCALARS}), max_size=3, unique_by=lambda e: str(e["name"]))
CONTAINER = st.fixed_dictionaries(
    {"name": NAMES}, optional={"image": SCALARS, "env": ENV, "resources": st.dictionaries(NAMES, SCALARS, max_size=2)}
)
CONTAINERS = st.lists(CONTAINER, max_size=3, unique_by=lambda c: str(c["name"]))
PODS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {}, optional={"containers": CONTAINERS, "nodeSelector": st.dictionaries(NAMES, SCALARS, max_size=2), "x": SCALARS}
)


@given(PODS)
def test_an_empty_template_changes_nothing(base: dict[str, Any]) -> None:
    assert merge(base, {}) == base
    assert merge({}, base) == base


@given(PODS, PODS)
def test_merging_twice_equals_merging_once(base: dict[str, Any], override: dict[str, Any]) -> None:
    once = merge(base, override)
    assert merge(once, override) == once


@given(PODS, PODS)
def test_our_items_keep_their_order_and_names_stay_unique(base: dict[str, Any], override: dict[str, Any]) -> None:
    names = [c["name"] for c in merge(base, override).get("containers", [])]
    ours = [c["name"] for c in base.get("containers", [])]
    assert names[: len(ours)] == ours
    assert len(set(names)) == len(names)


@given(PODS, PODS)
def test_the_user_wins_and_everything_else_stays_ours(base: dict[str, Any], override: dict[str, Any]) -> None:
    made = merge(base, override)
    for key in ("x", "nodeSelector"):
        if key in override:
            given = override[key]
            assert made[key] == ({**base.get(key, {}), **given} if isinstance(given, dict) else given)
        else:
            assert made.get(key) == base.get(key)


def test_a_volume_or_a_variable_is_replaced_as_a_whole() -> None:
    base = {"volumes": [{"name": "tmp", "emptyDir": {}}], "env": [{"name": "A", "value": "1"}]}
    override = {
        "volumes": [{"name": "tmp", "hostPath": {"path": "/t"}}],
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    }
    assert merge(base, override) == override


def test_null_removes_and_lists_without_a_key_are_replaced() -> None:
    base = {"lifecycle": {"preStop": {}}, "command": ["a"], "volumeMounts": [{"mountPath": "/a", "name": "x"}]}
    override = {"lifecycle": None, "command": ["b"], "volumeMounts": [{"mountPath": "/b", "name": "y"}]}
    assert merge(base, override) == {
        "command": ["b"],
        "volumeMounts": [{"mountPath": "/a", "name": "x"}, {"mountPath": "/b", "name": "y"}],
    }


def test_inputs_are_not_changed() -> None:
    base = {"containers": [{"name": "sglang", "env": [{"name": "A", "value": "1"}]}]}
    merge(base, {"containers": [{"name": "sglang", "env": [{"name": "B", "value": "2"}]}]})
    assert base == {"containers": [{"name": "sglang", "env": [{"name": "A", "value": "1"}]}]}

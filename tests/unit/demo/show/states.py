"""States and statuses for the tests of the show, among them statuses with every field missing, null or of odd type."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.demo.handover import Handover
from tests.demo.show.observation import observe
from tests.demo.show.show_state import ShowState, first_state, with_observation
from tests.traffic.report import RequestCounts, Summary

HOSTILE = "[bold red]a[/bold red]\x1b[2J\x1b[31m\n\r\tb\x07 [link=http://x]c[/link] 漢字漢字 :smile:"
"""Markup of rich, control sequences of terminals, wide characters."""


def traffic(seconds: float = 0.0, tokens: int = 0, requests: int = 0, failed: int = 0) -> Summary:
    counts = {"answer_tokens": tokens, "requests": requests, "failed": failed}
    return RequestCounts().summary("extraction", seconds).model_copy(update=counts)


def resource(**status: Any) -> dict[str, Any]:
    return {"spec": {"serving": {"replicas": 2}, "training": {"publishTokens": 10_000}}, "status": status}


def state_after(*looks: tuple[dict[str, Any], Summary]) -> ShowState:
    """The state after a look every minute, of a demo that began at 0 and installed packages in 62 s."""
    state = first_state(Handover(0.0, packages_seconds=62.0))
    for minute, (status, summary) in enumerate(looks, start=1):
        state = with_observation(state, observe(status, summary), 60.0 * minute)
    return state


def long_state(minutes: int) -> ShowState:
    """A state with so many minutes of traffic behind it, and texts from outside in every place that shows one."""
    seen = resource(
        active={"version": 0},
        acceptLength="1.41",
        estimatedSpeedup="~1.3x",
        training={"step": 123, "trainedTokens": 6200, "heldOutAcceptLength": "1.52"},
        candidate={"version": 1, "phase": HOSTILE, "message": HOSTILE * 20},
        rollout={"phase": HOSTILE * 20, "version": 1, "updated": 1, "total": 2},
    )
    looks = [(seen, traffic(60.0 * m, 2500 * m + 100 * (m % 7), 40 * m)) for m in range(1, minutes + 1)]
    return state_after(*looks)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**400),
    st.floats(),
    st.text(max_size=300),
    st.sampled_from(["~1.8x", "1.41", "1.52x (1.45-1.60)", "Validating", "Validated", "Idle", "Canary", HOSTILE]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
"""A value that a field may have by a mistake or an attack."""


def _fields(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, ODD))


STATUSES = st.fixed_dictionaries(
    {},
    optional={
        "acceptLength": ODD,
        "estimatedSpeedup": ODD,
        "active": ODD | _fields("version"),
        "candidate": ODD | _fields("version", "phase", "message"),
        "rollout": ODD | _fields("phase", "version", "updated", "total"),
        "training": ODD | _fields("phase", "step", "trainedTokens", "heldOutAcceptLength"),
        "pods": st.none() | st.lists(_fields("version"), max_size=3),
    },
)
RESOURCES = st.fixed_dictionaries(
    {"spec": st.fixed_dictionaries({"serving": st.just({"replicas": 2}), "training": ODD | _fields("publishTokens")})},
    optional={"status": st.none() | STATUSES},
)
"""Custom resources with partial statuses. The spec's defaults come from the API server, so `serving` is complete."""

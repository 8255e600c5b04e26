"""``status NAME --watch`` on terminals of usual sizes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from aurora_api.v1alpha1.conditions import ConditionStatus
from aurora_api.v1alpha1.status import PodStatus
from aurora_cli.commands import look
from tests.unit.cli.fake_cluster import FakeApiServer, resource
from tests.unit.cli.snapshots import HEALTHY, with_condition

WHY = "1 of 31 pods are ready; the engine of chat-30 has loaded no model for an hour"
HOME = "\x1b[H"
"""Each view begins at the upper left corner of the terminal."""


def last_view(monkeypatch: pytest.MonkeyPatch, *arguments: str, pods: int, width: int, height: int) -> list[str]:
    """The lines of the terminal after two views of a speculator whose last pod is not ready."""
    states = [PodStatus(name=f"chat-{n}", state="Ready") for n in range(pods - 1)]
    status = with_condition("ServingReady", ConditionStatus.FALSE, "PodsNotReady", WHY)
    bad = status.model_copy(update={"pods": [*states, PodStatus(name="chat-bad", state="AgentUnreachable")]})
    screen, naps = io.StringIO(), iter(range(1))

    def sleep(_: float) -> None:
        if next(naps, None) is None:
            raise KeyboardInterrupt

    terminal = Console(file=screen, force_terminal=True, width=width, height=height, color_system=None)
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(look, "console", lambda: terminal)
    result = FakeApiServer.of(resource(bad)).run("status", *arguments, "--watch")
    assert result.exit_code == 0, result.output
    return screen.getvalue().split(HOME)[-1].partition("\x1b")[0].splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 24), (200, 40)])
def test_what_is_wrong_is_on_a_small_screen_and_what_is_cut_off_is_counted(
    monkeypatch: pytest.MonkeyPatch, width: int, height: int
) -> None:
    lines = last_view(monkeypatch, "chat", pods=31, width=width, height=height)
    assert len(lines) == height
    text = " ".join("\n".join(lines).split())
    assert "ServingReady=False PodsNotReady" in text
    assert WHY in text
    assert lines[-1].strip().endswith("more lines: enlarge the terminal, or leave out --watch")


def test_pods_in_trouble_come_before_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = last_view(monkeypatch, "chat", pods=31, width=200, height=40)
    first_pod = next(number for number, line in enumerate(lines) if line.startswith("POD ")) + 1
    assert lines[first_pod].startswith("chat-bad ")


def test_a_large_screen_shows_every_condition_and_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(last_view(monkeypatch, "chat", pods=2, width=200, height=60))
    assert "more lines" not in text
    assert "\nServingReady=False PodsNotReady for " in text
    for condition in HEALTHY.conditions:
        assert f"\n{condition.type} " in text or condition.type == "ServingReady"


def test_lines_of_the_overview_that_are_cut_off_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_view(monkeypatch, pods=1, width=200, height=2)[-1].startswith("chat ")
    assert last_view(monkeypatch, pods=1, width=200, height=1)[-1].startswith("2 more lines")

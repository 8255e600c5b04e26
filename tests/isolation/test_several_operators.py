"""A second installation of another version yields to the one that acts, says so, and rewrites no Deployment."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.cluster.command import wait_until
from tests.isolation.idle_speculators import IdleSpeculators
from tests.rig.installation import RELEASE, SYSTEM_NAMESPACE, Installation
from tests.rig.local_image import ROOT

pytestmark = pytest.mark.timeout(900)
OTHER_RELEASE, OTHER_NAMESPACE = "second", "second-system"
NAME = "contested"
QUIET_SECONDS = 60.0


@pytest.fixture
def second_release(aurora: Installation) -> Iterator[None]:
    """A second release whose operator gives pods another agent image, as another version would."""
    values = aurora.cluster.helm("get", "values", RELEASE, "--namespace", SYSTEM_NAMESPACE, "-o", "json")
    aurora.cluster.helm(
        *("upgrade", "--install", OTHER_RELEASE, ROOT / "charts/aurora-operator", "--namespace", OTHER_NAMESPACE),
        *("--create-namespace", "--wait", "--timeout", "180s", "-f", "-"),
        *("--set=crds.enabled=false", "--set=embeddedStore.enabled=false", "--set-string=images.agent.tag=other"),
        input=values,
    )
    yield
    aurora.cluster.helm("uninstall", OTHER_RELEASE, "--namespace", OTHER_NAMESPACE, "--wait")


def _generation(speculators: IdleSpeculators) -> int:
    deployment = speculators.child("deployment", NAME)
    return int(deployment["metadata"]["generation"]) if deployment else 0


def _events(speculators: IdleSpeculators) -> list[str]:
    selection = ("-n", speculators.aurora.namespace, "--field-selector", f"involvedObject.name={NAME},type=Warning")
    return [f"{e['reason']}: {e['message']}" for e in speculators.aurora.cluster.get("events", *selection)["items"]]


def test_a_second_release_yields_and_rewrites_nothing(
    speculators: IdleSpeculators, request: pytest.FixtureRequest
) -> None:
    speculators.apply(NAME)
    wait_until("the Deployment exists", lambda: _generation(speculators) > 0, 90)
    before = _generation(speculators)
    request.getfixturevalue("second_release")
    wait_until(
        "the second installation yields to the first one",
        lambda: any(
            text.startswith("OperatorYielded: ") and OTHER_NAMESPACE in text and SYSTEM_NAMESPACE in text
            for text in _events(speculators)
        ),
        180,
    )
    time.sleep(QUIET_SECONDS)
    after = _generation(speculators)
    print(f"generation {before} -> {after} in {QUIET_SECONDS:.0f} s; {_events(speculators)}")
    assert after == before

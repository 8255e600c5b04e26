"""Two releases on one cluster act on their own namespaces, or the second one yields and rewrites nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.command import CommandError, wait_until
from tests.isolation.idle_speculators import IdleSpeculators, manifest
from tests.rig.installation import RELEASE, RESOURCE, SYSTEM_NAMESPACE, Installation
from tests.rig.local_image import ROOT

pytestmark = pytest.mark.timeout(900)
OTHER_RELEASE, OTHER_NAMESPACE = "second", "second-system"
NAME, SPLIT = "contested", "split"
TEAM = "team-b"
QUIET_SECONDS = 60.0


def _upgrade(aurora: Installation, release: str, namespace: str, *settings: str) -> None:
    """Install or upgrade a release with the values of the first one and ``settings``."""
    values = aurora.cluster.helm("get", "values", RELEASE, "--namespace", SYSTEM_NAMESPACE, "-o", "json")
    aurora.cluster.helm(
        *("upgrade", "--install", release, ROOT / "charts/aurora-operator", "--namespace", namespace),
        *("--create-namespace", "--wait", "--timeout", "180s", "-f", "-", *settings),
        input=values,
    )


OF_THE_SECOND = ("--set=crds.enabled=false", "--set=embeddedStore.enabled=false", "--set-string=images.agent.tag=other")
"""Another agent image, as another version would give to pods. The definition and the store are the first release's."""


@pytest.fixture
def second_release(aurora: Installation) -> Iterator[None]:
    """A second release that watches the same namespaces."""
    _upgrade(aurora, OTHER_RELEASE, OTHER_NAMESPACE, *OF_THE_SECOND)
    yield
    aurora.cluster.helm("uninstall", OTHER_RELEASE, "--namespace", OTHER_NAMESPACE, "--wait")


@pytest.fixture
def split_releases(aurora: Installation) -> Iterator[None]:
    """Two releases that watch one namespace each: that of the speculators, and :data:`TEAM`."""
    secret = aurora.cluster.get("secret", "aurora-store", "-n", aurora.namespace)
    metadata = {"name": "aurora-store", "namespace": TEAM}
    aurora.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}})
    aurora.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": secret["data"]})
    _upgrade(aurora, RELEASE, SYSTEM_NAMESPACE, f"--set=watchNamespaces={{{aurora.namespace}}}")
    _upgrade(aurora, OTHER_RELEASE, OTHER_NAMESPACE, *OF_THE_SECOND, f"--set=watchNamespaces={{{TEAM}}}")
    yield
    aurora.cluster.kubectl("delete", RESOURCE, "--all", "-n", TEAM, "--timeout=120s", timeout_seconds=150)
    aurora.cluster.helm("uninstall", OTHER_RELEASE, "--namespace", OTHER_NAMESPACE, "--wait")
    _upgrade(aurora, RELEASE, SYSTEM_NAMESPACE, "--set-json=watchNamespaces=[]")
    aurora.cluster.kubectl("delete", "namespace", TEAM, "--timeout=120s", timeout_seconds=150)


def _generation(speculators: IdleSpeculators) -> int:
    deployment = speculators.child("deployment", NAME)
    return int(deployment["metadata"]["generation"]) if deployment else 0


def _events(speculators: IdleSpeculators, name: str = NAME) -> list[str]:
    selection = ("-n", speculators.aurora.namespace, "--field-selector", f"involvedObject.name={name},type=Warning")
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


def _deployment_in(aurora: Installation, namespace: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = aurora.cluster.get("deployment", SPLIT, "-n", namespace)
    except CommandError as error:
        if "NotFound" not in str(error):
            raise
        return {}
    return found


@pytest.mark.usefixtures("split_releases")
def test_two_releases_act_on_their_own_namespaces_only(speculators: IdleSpeculators) -> None:
    aurora = speculators.aurora
    namespaces = (aurora.namespace, TEAM)
    for namespace in namespaces:
        aurora.cluster.apply(manifest(SPLIT), namespace=namespace)
    for namespace in namespaces:
        wait_until(f"a Deployment in {namespace}", lambda: bool(_deployment_in(aurora, namespace)), 90)  # noqa: B023
    before = [_deployment_in(aurora, namespace) for namespace in namespaces]
    time.sleep(QUIET_SECONDS)
    after = [_deployment_in(aurora, namespace) for namespace in namespaces]
    assert [found["metadata"]["generation"] for found in after] == [found["metadata"]["generation"] for found in before]
    images = [{c["name"]: c["image"] for c in found["spec"]["template"]["spec"]["containers"]} for found in after]
    assert [found["agent"].endswith(":other") for found in images] == [False, True]
    acting = [aurora.cluster.get(RESOURCE, SPLIT, "-n", namespace)["status"]["operator"] for namespace in namespaces]
    assert [named["installation"].split("/")[0] for named in acting] == [SYSTEM_NAMESPACE, OTHER_NAMESPACE]
    assert not [text for text in _events(speculators, SPLIT) if text.startswith("OperatorYielded")]

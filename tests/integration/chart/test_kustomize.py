"""The kustomize base is what the chart renders, an overlay chooses the images, and a real API server takes it."""

from __future__ import annotations

from pathlib import Path

import yaml

from aurora_api.crd import crd
from tests.cluster.command import run
from tests.cluster.local.build import binaries
from tests.generated.generated_file import ROOT
from tests.generated.kustomize_base import BASE, IMAGES
from tests.rig.api_server import api_server
from tests.rig.chart.rendered_chart import (
    NAMESPACE,
    OPERATOR,
    Object,
    operator_environment,
    operator_rights,
    render,
    select,
)

BASE_FOLDER = ROOT / "kustomize/base"


def _built(folder: Path) -> list[Object]:
    return list(yaml.safe_load_all(run(binaries() / "kubectl", "kustomize", folder)))


def test_the_base_is_what_the_chart_renders() -> None:
    assert BASE.is_current, "run python -m tests.generated.kustomize_base"


def test_the_base_builds_with_the_crd_and_the_rights_of_the_chart() -> None:
    objects = _built(BASE_FOLDER)
    definition = select(objects, "CustomResourceDefinition", crd()["metadata"]["name"])
    assert definition["spec"] == crd()["spec"]
    assert definition["metadata"]["annotations"] == {
        "kustomize.toolkit.fluxcd.io/prune": "disabled",
        "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
    }, "the definition's end is the end of every speculator"
    assert operator_rights(objects) == operator_rights(render())
    assert not [obj for obj in objects if "helm" in str(obj["metadata"]).lower()]


def test_an_overlay_sets_every_image(tmp_path: Path) -> None:
    images = [
        {"name": name, "newName": f"registry.example.com/{part}", "newTag": "v2"} for part, name in IMAGES.items()
    ]
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    relative = Path("../" * len(tmp_path.resolve().parts)) / BASE_FOLDER.relative_to("/")
    content = {"resources": [str(relative)], "images": images}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(content))
    objects = _built(overlay)
    (container,) = select(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    environment = operator_environment(objects)
    found = [container["image"], environment["AURORA_AGENT_IMAGE"], environment["AURORA_RUNTIME_IMAGE"]]
    assert found == [f"registry.example.com/{part}:v2" for part in IMAGES]
    assert environment["AURORA_LEASE_NAME"] == OPERATOR, "no other value of the environment is taken for an image"


def test_a_real_api_server_takes_every_object_of_the_base() -> None:
    with api_server() as server:
        server.kubectl("create", "namespace", NAMESPACE)  # a dry run creates none for the other objects
        options = ("--server-side", "--dry-run=server", "--validate=strict")
        answers = server.kubectl("apply", *options, "-k", BASE_FOLDER).splitlines()
    assert len(answers) == len(_built(BASE_FOLDER))
    assert all(answer.endswith("serverside-applied (server dry run)") for answer in answers), answers

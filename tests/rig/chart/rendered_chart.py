"""Renders the chart with Helm and picks objects from the result. Needs no cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from aurora_api.crd import REPOSITORY
from tests.cluster.command import run
from tests.cluster.local.build import binaries

CHART = REPOSITORY / "charts/aurora-operator"
SAMPLES = CHART / "ci"
"""Values files that the chart accepts. `helm lint` and these tests use them."""
IMAGES = SAMPLES / "images-values.yaml"
"""The smallest valid values."""
RELEASE, NAMESPACE = "aurora", "aurora-system"
OPERATOR = "aurora-operator"
"""Name of the release's objects, its ServiceAccount and its Lease included."""

Object = dict[str, Any]


class Right(NamedTuple):
    """One verb on one resource. ``names`` restricts the right to objects of these names; empty: every name."""

    group: str
    resource: str
    verb: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{'.' if self.group else ''}{self.group}"


def built_helm(*arguments: str | Path) -> str:
    """Run the Helm of the local cluster's build."""
    return run(binaries() / "helm", *arguments)


def render(
    *options: str,
    values: Path = IMAGES,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    helm: Callable[..., str] = built_helm,
) -> list[Object]:
    """The chart's objects without the CRD. Raises ``CommandError`` when Helm refuses the values."""
    text = helm("template", release, CHART, "-n", namespace, "-f", values, *options)
    # The loader in C is seven times as fast, and the definition has two thousand lines.
    objects = yaml.load_all(text, yaml.CSafeLoader)
    return [obj for obj in objects if obj and obj["kind"] != "CustomResourceDefinition"]


def select(objects: Iterable[Object], kind: str, name: str = OPERATOR) -> Object:
    """The object of this kind and name. Raises ``KeyError`` when there is none."""
    for obj in objects:
        if obj["kind"] == kind and obj["metadata"]["name"] == name:
            return obj
    raise KeyError(f"{kind} {name}")


def operator_environment(objects: Iterable[Object], name: str = OPERATOR) -> dict[str, str]:
    """The operator's environment variables that have a value in the chart."""
    (container,) = select(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def rights(rules: Sequence[Mapping[str, Any]]) -> Iterator[Right]:
    """Every right of the rules, one verb at a time."""
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield Right(group, resource, verb, tuple(rule.get("resourceNames", ())))


def operator_rights(objects: Sequence[Object]) -> set[Right]:
    """What the operator may do: the rights of every role that is bound to its ServiceAccount."""
    found = set[Right]()
    for binding in objects:
        if binding["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            assert binding["subjects"] == [{"kind": "ServiceAccount", "name": OPERATOR, "namespace": NAMESPACE}]
            role = binding["roleRef"]
            bound = (
                obj
                for obj in objects
                if (obj["kind"], obj["metadata"]["name"]) == (role["kind"], role["name"])
                and obj["metadata"].get("namespace") == binding["metadata"].get("namespace")
            )
            found |= set(rights(next(bound)["rules"]))
    return found

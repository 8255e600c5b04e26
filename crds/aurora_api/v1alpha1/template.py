"""Pod templates of users: partial pods, merged over the operator's own.

Invariants:

- A template changes the operator's own containers by name, and adds others only with an image. So a misspelt name is
  refused by ``kubectl apply`` instead of starting a pod that nobody expects.
- A template removes nothing without which the operator's containers cannot work. YAML reads a key whose items were
  deleted as null, and null removes a field. The model refuses that, because no CEL rule of the definition can: such a
  rule sees a null field as absent. Where the chart restricts templates, its admission policy refuses it earlier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, WithJsonSchema

from aurora_api.base import Model
from aurora_api.v1alpha1.cel import rules

MAX_CONTAINERS: Final = 8
NEEDED_FIELDS: Final = (
    *("image", "command", "env", "volumeMounts", "ports"),
    *("livenessProbe", "readinessProbe", "startupProbe"),
)
"""Fields of a container that the operator sets, and that a template may change but not remove.

A template may remove ``lifecycle``, ``resources`` and ``securityContext``: a pod works without them.
"""
_REPLACED_WHOLE: Final = ("image", "command")
"""An empty value of these fields takes the place of the operator's value."""

_CONTAINERS: Final = {
    "type": "array",
    "maxItems": MAX_CONTAINERS,
    "items": {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "maxLength": 63, "description": "Name of a container to change or to add."},
            "image": {
                "type": "string",
                "maxLength": 512,
                "nullable": True,
                "description": "A container to add needs it.",
            },
        },
    },
}


def _removed_fields(pod: Mapping[str, Any]) -> Iterator[str]:
    """The needed fields that a partial pod removes, in words. Values may have any type."""
    for field in ("volumes", "initContainers", "containers"):
        if field in pod and pod[field] is None:
            yield field
    for field in ("initContainers", "containers"):
        listed = pod.get(field)
        for container in listed if isinstance(listed, list) else ():
            if isinstance(container, Mapping):
                yield from (f"{name} of {container.get('name')}" for name in NEEDED_FIELDS if _removes(container, name))


def _removes(container: Mapping[str, Any], field: str) -> bool:
    if field not in container:
        return False
    value = container[field]
    return value is None or (field in _REPLACED_WHOLE and not value)


def _removes_nothing_needed(pod: dict[str, Any]) -> dict[str, Any]:
    if removed := list(_removed_fields(pod)):
        raise ValueError(
            f"a null or empty value would remove what the operator sets: {', '.join(removed)}; remove the key, or give"
            " it a value"
        )
    return pod


PartialPodSpec = Annotated[
    dict[str, Any],
    AfterValidator(_removes_nothing_needed),
    WithJsonSchema(
        {
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
            "properties": {
                "containers": _CONTAINERS | {"description": "Changes to the containers, merged by name."},
                "initContainers": _CONTAINERS
                | {"description": "Changes to the pod's init containers, merged by name."},
            },
        }
    ),
]
"""Part of a Kubernetes PodSpec. The API server checks the rest when the operator applies the child."""


class TemplateMetadata(Model):
    """Labels and annotations to add to the pods. The labels are added to the pods' Deployment or Job as well."""

    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Labels to add to the pods and to their Deployment or Job, for example a queue's. The operator's"
        " own labels win, because selectors use them.",
    )
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations to add to the pods.")


class PodTemplate(Model):
    """A partial pod template, merged over the operator's own as `kubectl patch --type=strategic` would do."""

    metadata: TemplateMetadata = Field(default_factory=TemplateMetadata)
    spec: PartialPodSpec = Field(
        default_factory=dict,
        description="Part of a PodSpec: resources, nodeSelector, tolerations, volumes, env, … Lists of named items"
        " merge by name. Null removes a field, but not `volumes`, nor in a container "
        + ", ".join(f"`{name}`" for name in NEEDED_FIELDS)
        + ", which the operator's containers need.",
    )


def template_field(pod: str, containers: Sequence[str], init_containers: Sequence[str] = (), note: str = "") -> Any:
    """A template field for the pods called ``pod``, which have ``containers`` and ``init_containers`` of ours.

    Args:
        note: sentences to add to the description.
    """

    def known_or_new(field: str, ours: Sequence[str], taken: Sequence[str]) -> str:
        new = f"(has(c.image) && !(c.name in {list(taken)}))"
        return f"(!has(self.spec.{field}) || self.spec.{field}.all(c, c.name in {list(ours)} || {new}))"

    rule = (
        f"!has(self.spec) || ({known_or_new('containers', containers, init_containers)}"
        f" && {known_or_new('initContainers', init_containers, containers)})"
    )
    message = (
        f"{pod} has the containers {', '.join(containers)} and the init containers"
        f" {', '.join(init_containers) or 'none'}: another one needs an image, and a name that no other container of"
        " the pod has"
    )
    names = ", ".join(f"`{name}`" for name in (*init_containers, *containers))
    changes = f"Changes to {pod}: node placement, volumes, environment, further containers. Ours: {names}."
    return Field(
        default_factory=PodTemplate,
        description=" ".join(filter(None, (changes, note))),
        json_schema_extra=rules((rule, message)),
    )

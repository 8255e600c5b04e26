"""What people read about the chart: its README and what Artifact Hub shows."""

from __future__ import annotations

from typing import Any

import yaml

from aurora_api import API_VERSION, KIND
from aurora_api.crd import crd
from aurora_api.v1alpha1.spec import SpeculatorSpec
from tests.generated.chart_readme import CHART, FILE
from tests.generated.generated_file import ROOT
from tests.generated.values_table import Value, read_values

TEXT = """# A header that belongs to no value.

# What a is.
# More of it.
a: 1
section:
  # What b is.
  b: {c: d}
  e: []
# A comment at the end.
"""


def test_comments_belong_to_the_value_below_them() -> None:
    assert list(read_values(TEXT)) == [
        Value("a", "What a is. More of it.", "1"),
        Value("section", "", None),
        Value("section.b", "What b is.", '{"c": "d"}'),
        Value("section.e", "", "[]"),
    ]


def test_the_readme_has_every_value_with_its_default() -> None:
    """A value that the reader overlooks, such as one in a form that the reader does not know, would be missing."""

    def leaves(values: dict[str, Any], path: str = "") -> set[str]:
        found = set()
        for name, value in values.items():
            found |= {f"{path}{name}"} | (leaves(value, f"{path}{name}.") if isinstance(value, dict) else set())
        return found

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    listed = {value.path: value for value in read_values((CHART / "values.yaml").read_text())}
    inline = tuple(f"{path}." for path, value in listed.items() if value.default is not None)
    assert listed.keys() == {path for path in leaves(values) if not path.startswith(inline)}
    text = (ROOT / FILE).read_text()
    assert all(f"**`{path}`**" in text for path in listed)


def test_artifact_hub_shows_our_resource_with_an_example_that_is_accepted() -> None:
    notes = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
    (shown,), (example,) = (yaml.safe_load(notes[f"artifacthub.io/{name}"]) for name in ("crds", "crdsExamples"))
    assert shown["name"] == crd()["metadata"]["name"]
    assert (shown["kind"], shown["version"]) == (KIND, API_VERSION.rpartition("/")[2])
    assert (example["apiVersion"], example["kind"]) == (API_VERSION, KIND)
    SpeculatorSpec.model_validate(example["spec"], extra="forbid")

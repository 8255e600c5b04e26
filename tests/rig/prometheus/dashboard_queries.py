"""What the chart's dashboard asks Prometheus: its panels, the choices at its top, and its annotations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from tests.generated.generated_file import ROOT

DASHBOARD: Final[dict[str, Any]] = json.loads(
    (ROOT / "charts/aurora-operator/monitoring/dashboard.json").read_text()
)  # fmt: skip


class DashboardQuery(NamedTuple):
    """A query as the dashboard has it, with Grafana's variables, and the panel, choice or annotation that asks it."""

    title: str
    expression: str

    def filled_in(self, namespace: str, name: str, rate_interval: str) -> str:
        """The query as Grafana sends it for one speculator."""
        variables = {"$__rate_interval": rate_interval, "$namespace": namespace, "$name": name}
        text = self.expression
        for variable, value in variables.items():
            text = text.replace(variable, value)
        return text


def dashboard_queries() -> Iterator[DashboardQuery]:
    """All queries. Those of a choice are aggregated by the label whose values it offers."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield DashboardQuery(panel["title"], target["expr"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert found is not None, f"the choice {variable['name']} asks for something else than values of a label"
            yield DashboardQuery(variable["name"], f"sum by ({found[2]}) ({found[1]})")
    for annotation in DASHBOARD["annotations"]["list"]:
        yield DashboardQuery(annotation["name"], annotation["expr"])

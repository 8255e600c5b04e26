"""The metrics that real processes export: the operator's registry, the agent's renderer and the installed SGLang.

The metrics reference is generated from them. Alerts and dashboards are checked against them.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Metric
from prometheus_client.parser import text_string_to_metric_families

from aurora_operator import metrics
from aurora_operator.speculator_figures import SpeculatorFigures
from aurora_protocol.agent_api import AgentState
from aurora_runtime.serving.agent.metrics import CaptureFigures, Metrics
from aurora_runtime.serving.agent.uploader import SpoolState
from aurora_runtime.serving.pod_files import SourceCounters, SpeculationState

_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
_SGLANG_SUFFIXES = {"Counter": ("",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
"""A class of the client library -> what it adds to a name. SGLang's names of counters end with ``_total`` already."""


@dataclass(frozen=True)
class Exported:
    """One metric. ``name`` is what the reference lists: with ``_total`` for a counter, without suffix for others."""

    name: str
    type: str
    help_text: str
    labels: tuple[str, ...]

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its series in PromQL."""
        return tuple(self.name.removesuffix("_total") + suffix for suffix in _SUFFIXES[self.type])


def _exported(family: Metric, labels: Iterable[str]) -> Exported:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return Exported(name, family.type, family.documentation, tuple(labels))


def operator() -> tuple[Exported, ...]:
    """The operator's own metrics, in the order of their definition, then those of each speculator."""
    own = [value for value in vars(metrics).values() if isinstance(value, Counter | Gauge | Histogram)]
    made = [_exported(family, metric._labelnames) for metric in own for family in metric.describe()]
    return (*made, *(_exported(family, family._labelnames) for family in SpeculatorFigures().collect()))


def operator_process() -> frozenset[str]:
    """Names of the series about the operator's process, from the client library."""
    return frozenset(sample.name for family in REGISTRY.collect() for sample in family.samples) - {
        name for metric in operator() for name in metric.series
    }


def agent() -> tuple[Exported, ...]:
    """The agent's metrics, from a state in which every one of them has a value."""
    made = Metrics()
    made.record_swap("success", 0.1)
    counters = SourceCounters(proposed_at=(2,), accepted_at=(1,))
    speculation = SpeculationState(
        boot="b",
        rounds_by_arm={"off": 1},
        lookup=counters,
        draft=counters,
        speedup_over_off=1.0,
    )
    state = AgentState(pod="p", boot="b", engine_ready=True, version=1)
    figures = CaptureFigures(losses={"queue": 1}, spool=SpoolState((1,), 1.0, 1))
    return tuple(_parsed(made.render(state, speculation, figures).decode()))


def _parsed(text: str) -> Iterator[Exported]:
    for family in text_string_to_metric_families(text):
        if not family.name.endswith("_created"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            yield _exported(family, sorted(labels))


def engine() -> frozenset[str]:
    """Names of SGLang's series, from the source of the installed package, which is not imported."""
    found = importlib.util.find_spec("sglang")
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).parent / "srt/observability/metrics_collector.py"
    return frozenset(_series_of_calls(ast.parse(source.read_text())))


def _series_of_calls(tree: ast.Module) -> Iterator[str]:
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            continue
        for keyword in call.keywords:
            name = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg == "name" and isinstance(name, str):
                for suffix in _SGLANG_SUFFIXES.get(call.func.id, ()):
                    yield f"{name}{suffix}"

"""Redraws the plots of docs/results from the JSON files in docs/results/data.

Each plot answers the question of one results page. Axes and text are grey and the background is transparent, so that
plots are readable on light and on dark pages.

Invariant: the same JSON gives the same bytes, so that a plot in the repository changes only when its figures do.

Takes seconds, and measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tests.bench.bench_command import bench_parser
from tests.bench.plot_style import GREY, svg_text

RESULTS: Final = Path(__file__).resolve().parents[2] / "docs/results"
BLUE, GREEN, AMBER, RED = "#3b82f6", "#10b981", "#f59e0b", "#ef4444"
TITLES: Final = {"json": "JSON extraction", "docstrings": "docstrings"}
CONCURRENCIES: Final = (1, 4)
"""The concurrencies of most measurements."""
COLOUR_OF_CONCURRENCY: Final = {1: BLUE, 2: GREEN, 4: AMBER}


@dataclass(frozen=True)
class Interval:
    """One estimate with its interval. It is drawn on the row ``label``, in the colour of its concurrency."""

    label: str
    concurrency: int
    estimate: float
    low: float
    high: float

    @classmethod
    def of(cls, label: str, concurrency: int, value: dict[str, float]) -> Interval:
        """From ``value``, which is a ratio with its interval, or a median with its quartiles."""
        if "median" in value:
            return cls(label, concurrency, value["median"], value["quartile1"], value["quartile3"])
        return cls(label, concurrency, value["estimate"], value["low"], value["high"])


def load(name: str) -> dict[str, Any]:
    """The runs of ``docs/results/data/<name>.json``, by their names."""
    runs: dict[str, Any] = json.loads((RESULTS / "data" / f"{name}.json").read_text())["runs"]
    return runs


def served_speedup() -> Figure:
    """How much faster than no speculation are the drafts and NGRAM?"""
    figure, axes = _figure(2, height=3.9)
    runs = load("served-speedup")
    for panel, traffic in zip(axes, TITLES, strict=True):
        measured = [row for row in runs[traffic]["rows"] if row["arm"] != "off"]
        measured.sort(key=lambda row: (row["arm"].startswith("NGRAM"), _tokens_learned(row["arm"]), row["arm"]))
        rows = [Interval.of(_arm_label(row["arm"]), row["concurrency"], row["against_off"]) for row in measured]
        _intervals(panel, rows, baseline=1)
        panel.set_title(TITLES[traffic])
        panel.set_xlabel("speed against no speculation")
    _concurrency_legend(figure)
    return figure


def load_sweep() -> Figure:
    """How fast are pods against no speculation, by requests in flight?"""
    figure, (panel,) = _figure(1, height=3.6)
    rows = [row for row in load("served-speedup")["load"]["rows"] if "against_off" in row]
    colours = {"NGRAM": RED, "EAGLE-3": AMBER, "controller": BLUE}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        colour = next(colour for start, colour in colours.items() if arm.startswith(start))
        chosen = [row for row in rows if row["arm"] == arm]
        at = [row["concurrency"] for row in chosen]
        low, middle, high = ([row["against_off"][key] for row in chosen] for key in ("low", "estimate", "high"))
        style = ":" if arm == "NGRAM, 12 tokens" else "-"
        panel.plot(at, middle, style, color=colour, marker="o", markersize=4, label=arm.replace("EAGLE-3", "draft"))
        panel.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    panel.axhline(1, color=GREY, linestyle=":")
    panel.set_xscale("log", base=2)
    panel.set_xticks(at, [str(each) for each in at])
    panel.set_ylim(bottom=0)
    panel.set_xlabel("requests in flight")
    panel.set_ylabel("speed against no speculation")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _tokens_learned(arm: str) -> float:
    """Thousands of answer tokens that the draft of ``arm`` has learned from: "EAGLE-3 after 4.6k, 5 steps" -> 4.6."""
    return float(arm.split("after ")[1].split("k")[0]) if "after" in arm else 0.0


def _arm_label(arm: str) -> str:
    if arm.startswith("NGRAM"):
        return f"SGLang's {arm}"
    state, steps = arm.removeprefix("EAGLE-3 ").split(", ")
    return f"draft, {state}{' tokens' if 'after' in state else ''}, {steps}"


def learning() -> Figure:
    """How does the acceptance length grow with traffic, by recipe?"""
    figure, axes = _figure(2, height=3.4)
    runs = load("learning")
    shown = {
        "fifo": ("Aurora's published loop", RED),
        "map, replay 3, averaged": ("default, more traffic than time", BLUE),
        "map, replay 15, averaged": ("default, waiting for traffic", GREEN),
    }
    for panel, traffic in zip(axes, TITLES, strict=True):
        for row in runs[traffic]["rows"]:
            name = next((n for n in shown if row["configuration"].split(":")[0].split(" (")[0] == n), None)
            if name is None:
                continue
            label, colour = shown[name]
            points = [(float(key.removesuffix("k")), value) for key, value in row.items() if key[0].isdigit()]
            tokens, means = [t for t, _ in points], [v["mean"] for _, v in points]
            panel.plot(tokens, means, color=colour, marker="o", markersize=4, label=label)
            low, high = ([v["mean"] + sign * v["sd"] for _, v in points] for sign in (-1, 1))
            panel.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_title(TITLES[traffic])
        panel.set_xlabel("answer tokens of traffic, thousands")
    axes[0].set_ylabel("acceptance length, held out")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def adaptation() -> Figure:
    """How fast and how accurate is a draft when traffic moves to another domain?"""
    figure, (live, speed) = _figure(2, height=3.6)
    run = load("adaptation")["served"]
    points = run["live_acceptance_length"]
    before = run["live_acceptance_length_before_the_shift"]
    tokens = [each["docstring_answer_tokens"] / 1000 for each in points]
    live.plot(tokens, [each["acceptance_length"] for each in points], color=BLUE, marker="o", markersize=4)
    live.plot(0, before, "o", color=AMBER, markersize=4)
    live.annotate("JSON, before the shift", (0, before), xytext=(8, -3), textcoords="offset points")
    live.annotate(
        "docstrings", (tokens[-2], points[-2]["acceptance_length"]), xytext=(0, 8), textcoords="offset points"
    )
    live.set_xlabel("answer tokens after the shift, thousands")
    live.set_ylabel("acceptance length, live traffic")
    live.set_ylim(bottom=0.8)
    arms = {"untrained": "untrained", "static": "stopped learning", "went_on_learning": "went on learning"}
    rows = [
        Interval(
            f"{row['asked_for'].split(',')[0]}: {label}",
            row["concurrency"],
            row[arm]["against_off"],
            row[arm].get("low", row[arm]["against_off"]),
            row[arm].get("high", row[arm]["against_off"]),
        )
        for traffic in ("docstrings", "JSON")
        for arm, label in arms.items()
        for row in run["rows"]
        if row["asked_for"].startswith(traffic)
    ]
    _intervals(speed, rows, baseline=1)
    speed.set_xlabel("speed against no speculation, after the shift")
    _concurrency_legend(figure)
    return figure


def vocabulary_map() -> Figure:
    """How much does a larger vocabulary map cost, and how fast does a map cover a domain?"""
    figure, (chosen, cost) = _figure(2, height=3.3)
    runs = load("vocabulary-map")
    for row, colour in zip(runs["coverage"]["rows"], (BLUE, AMBER), strict=True):
        points = [(0, row["day_0"]), *((each["answer_tokens"] / 1000, each["coverage"]) for each in row["after"])]
        chosen.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=row["traffic"])
    chosen.set_xlabel("answer tokens that the map is chosen from, thousands")
    chosen.set_ylabel("share of answer tokens in the map")
    chosen.legend()
    for concurrency in CONCURRENCIES:
        colour = COLOUR_OF_CONCURRENCY[concurrency]
        sizes = runs["sizes"]["rows"]
        rounds = [row[f"milliseconds_per_round_at_{concurrency}"] for row in sizes]
        medians = [r["median"] for r in rounds]
        errors = [
            [m - r["quartile1"] for m, r in zip(medians, rounds, strict=True)],
            [r["quartile3"] - m for m, r in zip(medians, rounds, strict=True)],
        ]
        entries = [int(str(row["entries"])) / 1000 for row in sizes]
        cost.errorbar(
            entries, medians, errors, color=colour, marker="o", markersize=4, label=f"concurrency {concurrency}"
        )
    cost.set_xlabel("entries of the map, thousands")
    cost.set_ylabel("milliseconds a round")
    cost.set_ylim(bottom=0)
    cost.legend()
    return figure


def costs() -> Figure:
    """How long do an engine step, a verify round and a training step take?"""
    figure, (engine, training) = _figure(2, height=3.4)
    machines = {"engine_epyc": "EPYC", "engine_xeon": "Xeon", "engine_zen3": "Zen 3"}
    runs = load("costs")
    rows = [
        Interval.of(f"{machine}: {label}", row["concurrency"], row[f"our_{part}_milliseconds"])
        for name, machine in machines.items()
        for part, label in (("step", "one token"), ("round", "round of 3 draft steps"))
        for row in runs[name]["rows"]
    ]
    _intervals(engine, rows)
    engine.set_xlabel("milliseconds, median and quartiles")
    engine.set_xlim(left=0)
    parts = [row for row in runs["training_step"]["rows"] if str(row.get("share", "")).endswith("%")]
    parts = [row for row in parts if "sum" not in row["share"]]
    labels = [row["part"].removeprefix("data: ").split(", and")[0] for row in parts]
    training.barh(labels[::-1], [row["cpu_milliseconds"]["median"] for row in parts][::-1], color=GREEN, height=0.5)
    training.set_xlabel("CPU milliseconds of a training step")
    _concurrency_legend(figure)
    return figure


def faults() -> Figure:
    """How long does each fault last?"""
    figure, (panel,) = _figure(1, height=3.9)
    rows = load("faults")["matrix"]["rows"]
    states = list(rows[0]["seconds"])
    colours = dict(zip(states, (BLUE, GREEN, AMBER, "#a855f7", RED), strict=True))
    for place, row in enumerate(reversed(rows)):
        for state, seconds in row["seconds"].items():
            panel.plot(max(seconds, 0.1), place, "o", color=colours[state], alpha=0.8, markersize=6)
    panel.set_yticks(range(len(rows)), [row["fault"].split(", a")[0].split(", until")[0] for row in reversed(rows)])
    panel.set_xscale("log")
    panel.set_xticks([0.1, 1, 10, 100], ["at once", "1", "10", "100"])
    panel.set_xlabel("seconds until every pod is ready again")
    handles = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=c, label=s) for s, c in colours.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=5, title="state of the draft when the fault struck"
    )
    return figure


def demo() -> Figure:
    """How much faster is the demo's draft, and how fast are the pods meanwhile?"""
    figure, (ratios, over_time) = _figure(2, height=2.9)
    run = load("demo")["warm_zen_3_3"]
    labels = {
        "active/off": "untrained draft / no speculation",
        "candidate/active": "trained / untrained draft",
        "candidate/off": "trained draft / no speculation",
    }
    rows = [Interval.of(labels[row["ratio"]], row["concurrency"], row) for row in run["rows"]]
    _intervals(ratios, sorted(rows, key=lambda row: list(labels.values()).index(row.label)), baseline=1)
    ratios.set_xlabel("ratio of tokens per second, measured")
    known = [row for row in run["over_time"] if "estimated_speedup" in row]
    minutes = [row["minutes"] for row in known]
    over_time.plot(minutes, [row["estimated_speedup"] for row in known], color=BLUE, marker="o", markersize=4)
    over_time.axhline(1, color=GREY, linestyle=":")
    over_time.set_xlim(left=0)
    over_time.set_ylim(bottom=0)
    over_time.set_xlabel("minutes of traffic")
    over_time.set_ylabel("speed against no speculation,\nengines' estimate")
    _concurrency_legend(figure, (1, 2))
    return figure


PLOTS: Final[dict[str, Callable[[], Figure]]] = {
    "served-speedup": served_speedup,
    "load-sweep": load_sweep,
    "learning": learning,
    "adaptation": adaptation,
    "vocabulary-map": vocabulary_map,
    "costs": costs,
    "faults": faults,
    "demo": demo,
}


def render(name: str) -> str:
    """The SVG text of one plot."""
    return svg_text(PLOTS[name], {"font.size": 10, "axes.titlesize": 11})


def _figure(panels: int, *, height: float) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(9 if panels > 1 else 7, height), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for panel in axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _intervals(panel: Axes, rows: Sequence[Interval], *, baseline: float | None = None) -> None:
    """Draw one line per label, from the top. The concurrencies of a label are drawn just above each other."""
    labels = list(dict.fromkeys(row.label for row in rows))
    concurrencies = sorted({row.concurrency for row in rows})
    for row in rows:
        place = float(len(labels) - 1 - labels.index(row.label))
        place += 0.18 * ((len(concurrencies) - 1) / 2 - concurrencies.index(row.concurrency))
        error = [[row.estimate - row.low], [row.high - row.estimate]]
        panel.errorbar(
            row.estimate, place, xerr=error, fmt="o", markersize=4, color=COLOUR_OF_CONCURRENCY[row.concurrency]
        )
    panel.set_yticks(range(len(labels)), labels[::-1])
    panel.set_ylim(-0.6, len(labels) - 0.4)
    if baseline is not None:
        panel.axvline(baseline, color=GREY, linestyle=":")
        panel.set_xlim(left=0)


def _concurrency_legend(figure: Figure, concurrencies: Sequence[int] = CONCURRENCIES) -> None:
    handles = [
        mpl.lines.Line2D([], [], marker="o", color=COLOUR_OF_CONCURRENCY[each], label=f"concurrency {each}")
        for each in concurrencies
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def main() -> None:
    """Write every plot beside its page."""
    bench_parser("tests.bench.plots", __doc__).parse_args()
    for name in PLOTS:
        (RESULTS / f"{name}.svg").write_text(render(name))
        print(f"wrote docs/results/{name}.svg")


if __name__ == "__main__":
    main()

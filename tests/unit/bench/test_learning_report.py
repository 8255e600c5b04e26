"""The report's figures: paired differences, the traffic needed, recovery and forgetting. The plot is reproducible."""

from __future__ import annotations

import json
import re

import pytest

from tests.bench.learning.configurations import PUBLISHED, REFERENCE
from tests.bench.learning.curve import Curve, mean_curve
from tests.bench.learning.curve_plot import plot_runs
from tests.bench.learning.learner import Evaluation
from tests.bench.learning.matching import Match
from tests.bench.learning.recipe_report import as_json, difference, from_json, table, traffic_needed
from tests.bench.learning.recipe_run import RecipeRun
from tests.bench.learning.shift import PhasePoint, summary


def run_with_rounds(name: str, rounds: tuple[int, ...], seed: int = 0, match: Match = Match.STEPS) -> RecipeRun:
    evaluation = Evaluation(1000, 8, rounds, tuple(30 for _ in rounds))
    return RecipeRun("json", match, name, seed, (evaluation,), 5000, 1.0)


def run_with_lengths(name: str, lengths: tuple[float, ...], seed: int = 0, match: Match = Match.STEPS) -> RecipeRun:
    evaluations = tuple(Evaluation(500 * n, 4 * n, (100,), (round(100 * length),)) for n, length in enumerate(lengths))
    return RecipeRun("json", match, name, seed, evaluations, 5000, 1.0)


def test_a_difference_is_paired_by_request() -> None:
    """Requests differ far more than recipes do. Here each needs one round less, so the paired difference is certain."""
    hard = tuple(range(10, 30))
    worse, better = run_with_rounds(REFERENCE, hard), run_with_rounds("discard 1", tuple(r - 1 for r in hard))
    text = difference([(better, worse)])
    low = float(text.split("[")[1].split(",")[0])
    assert low > 0
    assert difference([(worse, worse)]) == "+0.00 [+0.00, +0.00]"


def test_the_table_has_a_row_per_configuration_and_a_section_per_matching() -> None:
    runs = [
        run_with_rounds(REFERENCE, (10, 20)),
        run_with_rounds(PUBLISHED, (15, 20)),
        run_with_rounds(PUBLISHED, (10, 25), 1),
    ]
    text = table([*runs, run_with_rounds(PUBLISHED, (10, 20), match=Match.TRAFFIC)], {"json": 0.94})
    steps, traffic = text.split("Matched traffic")
    assert "distinct 4-grams of an answer 0.94" in steps
    lines = steps.splitlines()
    assert lines[2].startswith("| configuration | 1.0k |")
    assert len([line for line in lines if line.startswith(f"| {PUBLISHED}: ")]) == 1
    assert "| 2.00 |" in next(line for line in lines if line.startswith(f"| {REFERENCE}: "))
    assert f"| {PUBLISHED}: " in traffic
    assert f"| {REFERENCE}: " not in traffic
    assert {line.count("|") for line in lines if line.startswith("|")} == {lines[2].count("|")}


@pytest.mark.parametrize(
    ("level", "tokens"), [(0.5, 0.0), (1.0, 0.0), (1.5, 50.0), (2.5, 125.0), (3.0, 150.0), (3.1, None)]
)
def test_the_tokens_to_reach_a_level_are_interpolated_between_evaluations(level: float, tokens: float | None) -> None:
    assert Curve((0, 100, 150, 200), (1.0, 2.0, 3.0, 2.9)).tokens_to_reach(level) == tokens


def test_traffic_is_counted_until_the_level_at_which_the_published_loop_ends() -> None:
    published = [Curve((0, 100, 200), (1.0, 1.5, 2.0))]
    quick, slow = Curve((0, 100, 200), (1.0, 2.0, 2.5)), Curve((0, 100, 200), (1.0, 1.2, 1.9))
    assert mean_curve([quick, slow]).lengths == pytest.approx((1.0, 1.6, 2.2))
    assert traffic_needed(published, published) == "0.2k (1.00)"
    assert traffic_needed([quick], published) == "0.1k (0.50)"
    assert traffic_needed([slow], published) == "not reached"
    assert traffic_needed([quick, slow], published) == "0.2k (0.83) [0.50, not reached]"


def test_runs_survive_a_round_trip_through_json() -> None:
    runs = [run_with_lengths(PUBLISHED, (1.0, 1.5)), run_with_lengths(REFERENCE, (1.0, 1.7), 1, Match.TRAFFIC)]
    assert from_json(json.loads(json.dumps(as_json(runs, {})))) == runs


def test_the_same_runs_give_the_same_figure_with_a_panel_per_matching() -> None:
    runs = [
        run_with_lengths(name, lengths, seed, match)
        for match in Match
        for seed in (0, 1)
        for name, lengths in ((PUBLISHED, (1.0, 1.5, 2.0)), (REFERENCE, (1.0, 1.8, 2.1 + seed / 10)))
    ]
    drawn = plot_runs(runs)
    assert drawn == plot_runs(runs)
    texts = re.findall(r"<text [^>]*>([^<]+)</text>", drawn)
    assert {"json, matched steps", "json, matched traffic", PUBLISHED, REFERENCE} <= {*texts}


def test_recovery_and_forgetting_are_computed_from_the_points() -> None:
    a = [PhasePoint("a", 0, (1.0, 1.0)), PhasePoint("a", 100, (2.0, 1.1))]
    b = [PhasePoint("b", 0, (2.0, 1.1)), PhasePoint("b", 100, (1.9, 2.0)), PhasePoint("b", 200, (1.5, 2.0))]
    again = [PhasePoint("a", 0, (1.5, 2.0)), PhasePoint("a", 100, (2.0, 1.9))]
    points = [*a, a[-1], *b, *again, again[-1]]
    head, _, row = summary(["a", "b"], {"fifo": [points]}).splitlines()
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [
        *("fifo", "1.10", "2.00", "0.1k", "2.00", "1.50", "-0.50", "1.50", "2.00", "0.1k")
    ]
    assert head.count("|") == row.count("|")

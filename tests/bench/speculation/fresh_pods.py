"""How many fresh pods are slower than off over 200 rounds, on traffic that nothing can guess?

Plays simulated pods from their first request on, in the scenes that come nearest to the bound of 0.98 of off: prose at
concurrency 1, 4 and 16, and with an untrained draft at concurrency 1, with the costs of a CPU and of a GPU, and
docstrings with an untrained draft at concurrency 16 on a CPU. Each scene has one pod per seed. By default no test and
no other bench uses these seeds.

Prints, per scene, the speed of the whole run over off (mean over pods), the lowest speed in any 200 rounds, and how
many pods and how many windows of 200 rounds are below the bound. A window begins at every round. Then prints each pod
below the bound. Takes about two minutes. Needs a CPU only.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.bench_command import bench_parser, commit, load_around, load_average, provenance
from tests.bench.markdown import markdown_row, markdown_table
from tests.bench.speculation.fresh_scenes import (
    MACHINES,
    FreshScene,
    add_options,
    chosen_scenes,
    chosen_seeds,
)
from tests.bench.speculation.generated_rounds import DOCSTRINGS, PROSE, UNTRAINED
from tests.bench.speculation.regret import WINDOW_ROUNDS
from tests.bench.speculation.simulator import PlayedRound, against_off, windows_against_off

BOUND: Final = 0.98
"""Least speed over off in any window."""
REQUESTS_PER_PLACE: Final = 14
FIRST_SEED: Final = 300
PODS: Final = 60
HEAD: Final = ("scene", "pods", "whole run / off", "lowest window / off", "pods below", "windows below")


_UNTRAINED: Final = PROSE.with_draft(UNTRAINED)
SCENES: Final = tuple(
    FreshScene(f"{name}, {concurrency}, {machine}", kind, concurrency, MACHINES[machine], REQUESTS_PER_PLACE)
    for name, kind, concurrency, machine in (
        *(("prose", PROSE, c, m) for m, c in itertools.product(MACHINES, (1, 4, 16))),
        *(("prose, untrained draft", _UNTRAINED, 1, m) for m in MACHINES),
        ("docstrings, untrained draft", DOCSTRINGS.with_draft(UNTRAINED), 16, "CPU"),
    )
)


@dataclass(frozen=True)
class FreshPod:
    """One pod's run, as speeds over off's.

    Attributes:
        windows: of each stretch of 200 rounds. There is none in a shorter run.
    """

    seed: int
    whole: float
    windows: Sequence[float]

    @classmethod
    def of(cls, seed: int, rounds: Sequence[PlayedRound]) -> FreshPod:
        return cls(seed, against_off(rounds), tuple(windows_against_off(rounds, WINDOW_ROUNDS)))

    @property
    def lowest(self) -> float:
        return min(self.windows, default=float("inf"))

    @property
    def windows_below(self) -> int:
        return sum(one < BOUND for one in self.windows)


def cells(name: str, pods: Sequence[FreshPod]) -> list[object]:
    """A scene's row under :data:`HEAD`."""
    windows = sum(len(pod.windows) for pod in pods)
    below = sum(pod.windows_below for pod in pods)
    return [
        name,
        len(pods),
        f"{statistics.fmean(pod.whole for pod in pods):.3f}",
        f"{min(pod.lowest for pod in pods):.3f}",
        sum(pod.windows_below > 0 for pod in pods),
        f"{below:,} of {windows:,} ({below / max(1, windows):.2%})",
    ]


def main() -> None:
    parser = bench_parser("tests.bench.speculation.fresh_pods", __doc__)
    add_options(parser, PODS, FIRST_SEED)
    options = parser.parse_args()
    load_before, code, every = load_average(), commit(), list[FreshPod]()
    slow = []
    print(markdown_table(HEAD, []))
    for scene in chosen_scenes(options, SCENES):
        pods = [FreshPod.of(seed, list(scene.play(seed))) for seed in chosen_seeds(options)]
        every += pods
        slow += [f"- {scene.name}, seed {pod.seed}: {pod.lowest:.4f}" for pod in pods if pod.windows_below]
        print(markdown_row(cells(scene.name, pods)), flush=True)
    print(markdown_row(cells("all", every)))
    print("\nLowest window of each pod below the bound:\n\n" + ("\n".join(slow) or "There is none."))
    print(f"\n{provenance('tests.bench.speculation.fresh_pods', load_around(load_before), code)}")


if __name__ == "__main__":
    main()

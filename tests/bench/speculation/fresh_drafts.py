"""How soon does a fresh pod use a good draft, and what does a bad draft cost it?

Plays simulated pods from their first request on, for 1000 rounds each, on prose, where lookup finds nothing. A scene
has a machine, a concurrency and a draft of a known value: the speed of its best fixed number of steps over off. Each
scene has one pod per seed. By default no other bench uses these seeds.

Prints, per scene, the best fixed arm's speed over off, the rounds until the draft runs in most rounds (the first of 50
rounds of which more than half draft), how many pods never come so far, the speed of the first 100, 300 and 1000 rounds
over the best fixed arm's, and the lowest speed over off in any 200 rounds: median [5th, 95th percentile] over pods.
Takes about five minutes. Needs a CPU only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.bench_command import bench_parser, commit, load_around, load_average, provenance
from tests.bench.markdown import markdown_row, markdown_table
from tests.bench.speculation.cost_tables import CostTable, cpu_milliseconds, gpu_milliseconds
from tests.bench.speculation.generated_rounds import PROSE, UNTRAINED, TrafficKind, generate
from tests.bench.speculation.regret import WINDOW_ROUNDS, best_fixed_arm, new_controller, new_noise
from tests.bench.speculation.simulator import PlayedRound, play, speed, worst_window

ROUNDS: Final = 1000
STRETCHES: Final = (100, 300, 1000)
"""Numbers of first rounds whose speed is compared."""
MOST_OF: Final = 50
"""Rounds of which more than half must draft."""
FIRST_SEED: Final = 700
PODS: Final = 40
MACHINES: Final = {"CPU": cpu_milliseconds, "GPU": gpu_milliseconds}
KNOWN: Final = {
    ("CPU", 1): {"untrained": UNTRAINED, "1.1x": 0.21, "1.2x": 0.32, "1.5x": 0.54, "2x": 0.74},
    ("CPU", 4): {"untrained": UNTRAINED, "0.9x": 0.13, "1.1x": 0.39, "1.2x": 0.52, "1.5x": 0.745, "2x": 0.93},
    ("GPU", 1): {"untrained": UNTRAINED, "0.9x": 0.03, "1.1x": 0.26, "1.2x": 0.36, "1.5x": 0.57, "2x": 0.74},
    ("GPU", 4): {"untrained": UNTRAINED, "0.9x": 0.03, "1.1x": 0.26, "1.2x": 0.36, "1.5x": 0.57, "2x": 0.74},
}
"""By machine and concurrency, the share of tokens that a draft of each value over off knows."""
HEAD: Final = (
    *("scene", "best arm / off", "rounds until used", "never used"),
    *(f"first {n} / best arm" for n in STRETCHES),
    "worst 200 / off",
)


@dataclass(frozen=True)
class Scene:
    """The draft, the load and the machine of fresh pods."""

    name: str
    kind: TrafficKind
    concurrency: int
    costs: CostTable

    def best_speed(self, seed: int) -> tuple[float, float]:
        """The best fixed arm's tokens per millisecond, and its speed over off."""
        best = best_fixed_arm(generate(self.kind, 60 * self.concurrency, seed), self.concurrency, self.costs)
        return best.speed, best.speedup

    def play(self, seed: int) -> list[PlayedRound]:
        """The first rounds of a fresh pod. Equal seeds give equal rounds."""
        traffic = generate(self.kind, 70 * self.concurrency, seed)
        rounds = play(new_controller(seed), traffic, self.concurrency, self.costs, new_noise(seed))
        return list(itertools.islice(rounds, ROUNDS))


SCENES: Final = tuple(
    Scene(f"{machine}, {concurrency}, {value}", PROSE.with_draft(known), concurrency, MACHINES[machine])
    for (machine, concurrency), drafts in KNOWN.items()
    for value, known in drafts.items()
)


def rounds_until_used(rounds: Sequence[PlayedRound]) -> float:
    """The first round from which on the draft runs in most of :data:`MOST_OF` rounds. Infinite if there is none."""
    drafting = [r.arm.drafts for r in rounds]
    for begin in range(len(rounds) - MOST_OF + 1):
        if 2 * sum(drafting[begin : begin + MOST_OF]) > MOST_OF:
            return begin
    return math.inf


def percentiles(values: Sequence[float], digits: int) -> str:
    """``median [5th, 95th percentile]``."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]

    return f"{at(0.5):.{digits}f} [{at(0.05):.{digits}f}, {at(0.95):.{digits}f}]"


def cells(scene: Scene, pods: Sequence[Sequence[PlayedRound]], best: tuple[float, float]) -> list[object]:
    """A scene's row under :data:`HEAD`."""
    used = [rounds_until_used(pod) for pod in pods]
    shares = [percentiles([speed(pod[:n]) / best[0] for pod in pods], 3) for n in STRETCHES]
    windows = [worst_window(pod, WINDOW_ROUNDS) for pod in pods]
    never = sum(map(math.isinf, used))
    return [scene.name, f"{best[1]:.2f}", percentiles(used, 0), never, *shares, percentiles(windows, 3)]


def main() -> None:
    parser = bench_parser("tests.bench.speculation.fresh_drafts", __doc__)
    parser.add_argument("--pods", type=int, default=PODS, help="pods in each scene, one per seed")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="seed of each scene's first pod")
    options = parser.parse_args()
    load_before, code = load_average(), commit()
    print(markdown_table(HEAD, []))
    for scene in SCENES:
        seeds = range(options.first_seed, options.first_seed + options.pods)
        pods = [scene.play(seed) for seed in seeds]
        print(markdown_row(cells(scene, pods, scene.best_speed(options.first_seed))), flush=True)
    print(f"\n{provenance('tests.bench.speculation.fresh_drafts', load_around(load_before), code)}")


if __name__ == "__main__":
    main()

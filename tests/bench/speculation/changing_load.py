"""How much does the speculation controller lose where the batch size changes every few rounds?

Plays simulated pods whose concurrency changes with every few requests. So the batch is in another range of batch sizes
every few rounds, and the controller keeps times, and times off, for each of the ranges. Each scene has one pod per
seed. By default no test and no other bench uses these seeds.

Prints, per scene, the ranges of batch sizes that a pod met, the rounds between two changes of the range, the speed over
off, the share of rounds that time off although another arm is faster, what this costs (how much less time the best
fixed arm takes for the tokens of these rounds, over the time of all rounds), and the speed over that of the best fixed
arm: mean over pods, and of the last figure the lowest pod too. The first half of a pod's rounds, in which it learns,
does not count, except for the speeds. Takes about two minutes. Needs a CPU only.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.bench_command import bench_parser, commit, load_around, load_average, provenance
from tests.bench.markdown import markdown_row, markdown_table
from tests.bench.speculation.cost_tables import CostTable
from tests.bench.speculation.fresh_scenes import MACHINES, add_options, chosen_scenes, chosen_seeds
from tests.bench.speculation.generated_rounds import DOCSTRINGS, JSON, TrafficKind, generate
from tests.bench.speculation.regret import BestFixedArm, best_fixed_arm, new_controller, new_noise
from tests.bench.speculation.simulator import Load, PlayedRound, load_in_turn, play, speed

from aurora_runtime.engine.arms import OFF
from aurora_runtime.serving.speculation.estimates.size_ranges import size_range

FIRST_SEED: Final = 1700
PODS: Final = 6
REQUESTS: Final = 600
LOADS: Final = {
    "4": load_in_turn((4,), 1),
    "1 to 8": load_in_turn((1, 8, 3, 6, 2, 5), 4),
    "4 to 16": load_in_turn((4, 16, 8, 12), 6),
    "4 to 32": load_in_turn((4, 32, 8, 24, 16), 12),
}
HEAD: Final = (
    *("scene", "ranges", "rounds between changes", "best arm / off", "rounds that time off", "what they cost"),
    *("controller / best arm", "lowest"),
)


@dataclass(frozen=True)
class ChangingScene:
    """Traffic, load and machine of pods."""

    name: str
    kind: TrafficKind
    load: Load
    costs: CostTable

    def pod(self, seed: int) -> Pod:
        """A fresh pod. Equal seeds give equal pods."""
        requests = generate(self.kind, REQUESTS, seed)
        rounds = list(play(new_controller(seed), requests, self.load, self.costs, new_noise(seed)))
        return Pod(rounds, best_fixed_arm(requests, self.load, self.costs))


@dataclass(frozen=True)
class Pod:
    """A pod's run, and the best fixed arm on its requests."""

    rounds: Sequence[PlayedRound]
    best: BestFixedArm

    @property
    def late(self) -> Sequence[PlayedRound]:
        """The second half of the rounds."""
        return self.rounds[len(self.rounds) // 2 :]

    @property
    def ranges(self) -> int:
        return len({size_range(r.size) for r in self.late})

    @property
    def rounds_between_changes(self) -> float:
        pairs = itertools.pairwise(size_range(r.size) for r in self.late)
        return len(self.late) / (1 + sum(a != b for a, b in pairs))

    @property
    def off_timings(self) -> list[PlayedRound]:
        return [r for r in self.late if r.explores and r.arm == OFF]

    @property
    def off_share(self) -> float:
        return len(self.off_timings) / len(self.late)

    @property
    def off_loss(self) -> float:
        """The share of the time that rounds which time off lose against the best fixed arm's mean speedup."""
        lost = sum(r.milliseconds - r.off_milliseconds / self.best.speedup for r in self.off_timings)
        return lost / sum(r.milliseconds for r in self.late)

    @property
    def of_best(self) -> float:
        return speed(self.rounds) / self.best.speed


SCENES: Final = tuple(
    ChangingScene(f"{kind.name}, {load}, {machine}", kind, LOADS[load], MACHINES[machine])
    for kind, load, machine in itertools.product((JSON, DOCSTRINGS), LOADS, MACHINES)
)


def cells(scene: ChangingScene, pods: Sequence[Pod]) -> list[object]:
    """A scene's row under :data:`HEAD`."""
    mean = statistics.fmean
    return [
        scene.name,
        f"{mean(pod.ranges for pod in pods):.1f}",
        f"{mean(pod.rounds_between_changes for pod in pods):.1f}",
        f"{mean(pod.best.speedup for pod in pods):.2f}",
        f"{mean(pod.off_share for pod in pods):.2%}",
        f"{mean(pod.off_loss for pod in pods):.2%}",
        f"{mean(pod.of_best for pod in pods):.4f}",
        f"{min(pod.of_best for pod in pods):.4f}",
    ]


def main() -> None:
    parser = bench_parser("tests.bench.speculation.changing_load", __doc__)
    add_options(parser, PODS, FIRST_SEED)
    options = parser.parse_args()
    load_before, code = load_average(), commit()
    print(markdown_table(HEAD, []))
    for scene in chosen_scenes(options, SCENES):
        pods = [scene.pod(seed) for seed in chosen_seeds(options)]
        print(markdown_row(cells(scene, pods)), flush=True)
    print(f"\n{provenance('tests.bench.speculation.changing_load', load_around(load_before), code)}")


if __name__ == "__main__":
    main()

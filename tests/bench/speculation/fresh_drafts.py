"""How soon does a fresh pod use a good draft, and what does a bad draft cost it?

Plays simulated pods from their first request on, for 1000 rounds each, on prose, where lookup finds nothing. A scene
has a machine, a concurrency and a draft of a known value: the speed of its best fixed number of steps over off. Each
scene has one pod per seed. By default no other bench uses these seeds.

Prints, per scene, the best fixed arm's speed over off, the rounds until the draft is in use (the first round that
drafts because drafting seems best, and from which on more than half of 50 rounds draft), how many pods never come so
far, the speed of the first 100, 300 and 1000 rounds over the best fixed arm's, and the lowest speed over off in any 200
rounds: median [5th, 95th percentile] over pods. The best fixed arm is that of the first 1000 rounds of the pod's own
requests, chosen afterwards. Takes about ten minutes. Needs a CPU only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
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
from tests.bench.speculation.generated_rounds import PROSE, UNTRAINED
from tests.bench.speculation.regret import WINDOW_ROUNDS, BestFixedArm, best_fixed_arm
from tests.bench.speculation.simulator import PlayedRound, speed, worst_window

ROUNDS: Final = 1000
STRETCHES: Final = (100, 300, 1000)
"""Numbers of first rounds whose speed is compared."""
MOST_OF: Final = 50
"""Rounds of which more than half must draft."""
REQUESTS_PER_PLACE: Final = 110
"""Enough for :data:`ROUNDS` rounds of the best draft."""
FIRST_SEED: Final = 700
PODS: Final = 40
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


SCENES: Final = tuple(
    FreshScene(
        f"{machine}, {concurrency}, {value}",
        PROSE.with_draft(known),
        concurrency,
        MACHINES[machine],
        REQUESTS_PER_PLACE,
    )
    for (machine, concurrency), drafts in KNOWN.items()
    for value, known in drafts.items()
)


def best_arm(scene: FreshScene, seed: int) -> BestFixedArm:
    """The arm that is fastest over the first rounds of this seed's requests."""
    return best_fixed_arm(scene.requests(seed), scene.concurrency, scene.costs, ROUNDS)


def rounds_until_used(rounds: Sequence[PlayedRound]) -> float:
    """The rounds before the draft is in use. Infinite if it never is.

    The use begins with a round that drafts because its arm seems best, not to explore. More than half of the
    :data:`MOST_OF` rounds from this one on draft, exploring rounds included.
    """
    drafting = [r.arm.drafts for r in rounds]
    for begin, first in enumerate(rounds[: max(0, len(rounds) - MOST_OF + 1)]):
        if first.arm.drafts and not first.explores and 2 * sum(drafting[begin : begin + MOST_OF]) > MOST_OF:
            return begin
    return math.inf


def percentiles(values: Sequence[float], digits: int) -> str:
    """``median [5th, 95th percentile]``."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]

    return f"{at(0.5):.{digits}f} [{at(0.05):.{digits}f}, {at(0.95):.{digits}f}]"


def cells(scene: FreshScene, pods: Sequence[Sequence[PlayedRound]], best_arms: Sequence[BestFixedArm]) -> list[object]:
    """A scene's row under :data:`HEAD`. Each pod is compared with the best arm of its own requests."""
    used, gains = [rounds_until_used(pod) for pod in pods], [best.speedup for best in best_arms]
    shares = [
        percentiles([speed(pod[:n]) / best.speed for pod, best in zip(pods, best_arms, strict=True)], 3)
        for n in STRETCHES
    ]
    windows = [worst_window(pod, WINDOW_ROUNDS) for pod in pods]
    never = sum(map(math.isinf, used))
    return [scene.name, percentiles(gains, 2), percentiles(used, 0), never, *shares, percentiles(windows, 3)]


def main() -> None:
    parser = bench_parser("tests.bench.speculation.fresh_drafts", __doc__)
    add_options(parser, PODS, FIRST_SEED)
    options = parser.parse_args()
    load_before, code = load_average(), commit()
    print(markdown_table(HEAD, []))
    for scene in chosen_scenes(options, SCENES):
        pods = [list(itertools.islice(scene.play(seed), ROUNDS)) for seed in chosen_seeds(options)]
        print(markdown_row(cells(scene, pods, [best_arm(scene, seed) for seed in chosen_seeds(options)])), flush=True)
    print(f"\n{provenance('tests.bench.speculation.fresh_drafts', load_around(load_before), code)}")


if __name__ == "__main__":
    main()

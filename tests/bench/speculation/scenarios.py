"""Simulated pods that constants of the controller are chosen and scored on: traffic, load and machine.

Invariant: the requests of seeds that choose are none of the requests of seeds that score, generated or recorded.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tests.bench.speculation.cost_tables import CostTable, cpu_milliseconds, gpu_milliseconds
from tests.bench.speculation.generated_rounds import DOCSTRINGS, JSON, PROSE, SQL, generate, in_turn
from tests.bench.speculation.recorded_rounds import RecordedRequest, RecordedRounds, repeated
from tests.bench.speculation.regret import new_busy_noise, new_controller, new_noise
from tests.bench.speculation.simulator import play, speed

from aurora_runtime.serving.speculation.controller import ControllerSettings

CHOOSING_SEEDS: Final = tuple(range(100, 106))
SCORING_SEEDS: Final = (0, 1)
"""Seeds with which tests/unit/serving/speculation/test_regret.py scores the controller."""
RECORDED_CHOOSING_SEEDS: Final = tuple(range(100, 112))
RECORDED_SCORING_SEEDS: Final = tuple(range(12))
_RECORDED_SEEDS: Final = (*RECORDED_CHOOSING_SEEDS, *RECORDED_SCORING_SEEDS)
EARLY_SEED: Final = 5000
"""Added to the seed of the generated requests beside a busy neighbour."""


class Traffic(Protocol):
    """Requests of one kind."""

    @property
    def name(self) -> str: ...

    def requests(self, count: int, seed: int, *, early: bool = False) -> list[RecordedRequest]:
        """The same ``count`` requests for equal seeds. ``early``: those of a pod's start, which are not scored."""
        ...


@dataclass(frozen=True)
class GeneratedTraffic:
    """``json``, ``docstrings``, ``sql``, or ``mixed``, which has these and prose in turn."""

    name: str

    def requests(self, count: int, seed: int, *, early: bool = False) -> list[RecordedRequest]:
        seed += EARLY_SEED * early
        if self.name == "mixed":
            return in_turn((JSON, DOCSTRINGS, SQL, PROSE), count, seed)
        return generate({"json": JSON, "docstrings": DOCSTRINGS, "sql": SQL}[self.name], count, seed)


@dataclass(frozen=True)
class RecordedTraffic:
    """Recorded requests, of which every seed has its own. A seed's requests are repeated until there are enough.

    So an interval over seeds says what other requests would have changed. Raises :class:`ValueError` when there are
    fewer requests than seeds.
    """

    name: str
    recorded: tuple[RecordedRequest, ...]

    def __post_init__(self) -> None:
        if len(self.recorded) < len(_RECORDED_SEEDS):
            raise ValueError(
                f"{self.name}: {len(self.recorded)} recorded requests are too few for {len(_RECORDED_SEEDS)} seeds"
            )

    def requests(self, count: int, seed: int, *, early: bool = False) -> list[RecordedRequest]:
        own = self.recorded[_RECORDED_SEEDS.index(seed) :: len(_RECORDED_SEEDS)]
        return repeated(own[::-1] if early else own, count)


@dataclass(frozen=True)
class Scenario:
    """Traffic, load and machine of one simulation.

    Attributes:
        starts_busy: whether the controller first played requests beside a busy neighbour. They do not count.
    """

    traffic: Traffic
    concurrency: int
    costs: CostTable
    starts_busy: bool = False

    def requests(self, seed: int) -> list[RecordedRequest]:
        """The same requests for equal seeds."""
        return self.traffic.requests(40 if self.concurrency == 1 else 16 * self.concurrency, seed)

    def speed(self, settings: ControllerSettings, seed: int) -> float:
        """Tokens per millisecond of a pod with ``settings``."""
        controller = new_controller(seed, settings)
        if self.starts_busy:
            early = self.traffic.requests(10 * self.concurrency, seed, early=True)
            for _ in play(controller, early, self.concurrency, self.costs, new_busy_noise(seed)):
                pass
        return speed(list(play(controller, self.requests(seed), self.concurrency, self.costs, new_noise(seed))))


_MACHINES: Final = (cpu_milliseconds, gpu_milliseconds)
_DOCSTRINGS, _SQL, _MIXED, _JSON = map(GeneratedTraffic, ("docstrings", "sql", "mixed", "json"))
GENERATED: Final = (
    *itertools.starmap(Scenario, itertools.product((_DOCSTRINGS, _SQL, _MIXED), (1, 4, 16), _MACHINES)),
    *itertools.starmap(Scenario, itertools.product((_JSON, _DOCSTRINGS), (1, 4), _MACHINES, [True])),
)
"""Traffic on which lookup and the draft take turns, so that catch-ups count, and pods that started busy."""


def recorded_scenarios(files: Sequence[Path]) -> tuple[Scenario, ...]:
    """Each domain of each file at concurrency 1 and 4, with and without a busy start, on both machines.

    Raises :class:`ValueError` for a domain with too few requests.
    """
    traffics = list[Traffic]()
    for file in files:
        rounds = RecordedRounds.read(file)
        for domain in dict.fromkeys(request.domain for request in rounds.requests):
            traffics.append(RecordedTraffic(f"{file.stem} {domain}", rounds.of_domain(domain)))
    return tuple(itertools.starmap(Scenario, itertools.product(traffics, (1, 4), _MACHINES, (False, True))))

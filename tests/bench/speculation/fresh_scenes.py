"""Scenes of fresh pods: the traffic, the load and the machine that a pod meets from its first request on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from tests.bench.speculation.cost_tables import CostTable, cpu_milliseconds, gpu_milliseconds
from tests.bench.speculation.generated_rounds import TrafficKind, generate
from tests.bench.speculation.recorded_rounds import RecordedRequest
from tests.bench.speculation.regret import new_controller, new_noise
from tests.bench.speculation.simulator import PlayedRound, play

MACHINES: Final = {"CPU": cpu_milliseconds, "GPU": gpu_milliseconds}


class Named(Protocol):
    """A scene."""

    @property
    def name(self) -> str: ...


Scene = TypeVar("Scene", bound=Named)


@dataclass(frozen=True)
class FreshScene:
    """The traffic, the load and the machine of fresh pods.

    Attributes:
        requests_per_place: how many requests each of the ``concurrency`` places gets, one after the other.
    """

    name: str
    kind: TrafficKind
    concurrency: int
    costs: CostTable
    requests_per_place: int

    def requests(self, seed: int) -> list[RecordedRequest]:
        """The requests of one pod. Equal seeds give equal requests."""
        return generate(self.kind, self.requests_per_place * self.concurrency, seed)

    def play(self, seed: int) -> Iterator[PlayedRound]:
        """The rounds of one pod. Equal seeds give equal rounds."""
        return play(new_controller(seed), self.requests(seed), self.concurrency, self.costs, new_noise(seed))


def add_options(parser: argparse.ArgumentParser, pods: int, first_seed: int) -> None:
    """The options of a bench that plays ``pods`` pods in each scene, one per seed from ``first_seed`` on."""
    parser.add_argument("--pods", type=int, default=pods, help="pods in each scene, one per seed")
    parser.add_argument("--first-seed", type=int, default=first_seed, help="seed of each scene's first pod")
    parser.add_argument("--scenes", default="", metavar="TEXT", help="play only scenes whose name contains this text")


def chosen_scenes(options: argparse.Namespace, scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes that the options name. Ends the bench if there is none."""
    if found := [scene for scene in scenes if options.scenes in scene.name]:
        return found
    names = "; ".join(scene.name for scene in scenes)
    raise SystemExit(f"--scenes {options.scenes}: no scene has a name with this text. The scenes are: {names}")


def chosen_seeds(options: argparse.Namespace) -> range:
    """A seed for each pod."""
    return range(options.first_seed, options.first_seed + options.pods)

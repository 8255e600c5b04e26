"""Does a trainer that is killed at random moments learn the same as an undisturbed trainer, and no shard twice?

Recorded requests arrive in portions, in a real S3. The killed trainer gets one portion per life, and each life but the
last ends by kill -9 at a random moment: during start, training, replay, saving or publishing. The last life trains to
the end. The undisturbed trainer gets the next portion once a saved state covers the previous one. Every state that is
saved is audited, and its draft is evaluated on held-out requests.

Prints the shards that each trainer learned from, its held-out acceptance length over the run, and the final difference.
Exits with 1 when the audit finds a fault.

Takes about 20 minutes on two cores, after recording the domain once, which takes some minutes. Needs a CPU only.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tests.assets.model import ensure_model
from tests.assets.s3 import S3, seaweedfs
from tests.assets.traces.recorded import domain_traces
from tests.assets.trained_draft import untrained_draft
from tests.assets.trainer_process import put_shards, running_trainer, stop_trainer, trainer_settings, wait_for
from tests.bench.bench_command import bench_parser, load_around, load_average
from tests.bench.learning.configurations import DRAFT_STEPS
from tests.bench.learning.learner import Evaluation
from tests.bench.learning.matching import Match
from tests.bench.learning.recipe_report import difference
from tests.bench.learning.recipe_run import RecipeRun
from tests.bench.markdown import markdown_table
from tests.traffic.prompts import Domain

from aurora_api.v1alpha1.training import TrainingSpec
from aurora_protocol.training_records import TrainerPhase, TrainerState
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.evaluation import evaluate
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_store import ObjectStore, Registry
from aurora_store.errors import ObjectMissing

RECORDED_REQUESTS = 160
POLL_SECONDS = 0.5
PASSES = 4
"""As many passes as the trainer makes beside fresh batches. Replay after the last batch shows nothing about kills."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the traffic at which the table gives the acceptance length."""


def audit_states(states: Sequence[TrainerState], shard_positions: Mapping[str, int]) -> list[str]:
    """The faults in the states that one training run saved, oldest first.

    The weights of a state have learned from exactly the shards that the state lists, so the audit reads the lists only.

    Args:
        shard_positions: the positions of every shard that was written.
    """
    faults = []
    previous: tuple[str, ...] = ()
    for state in states:
        listed = state.consumed
        if len(set(listed)) < len(listed):
            faults.append(f"state {state.epoch} learned from a shard twice")
        if listed[: len(previous)] != previous:
            faults.append(f"state {state.epoch} forgot shards that an earlier state had learned from")
        positions = sum(shard_positions.get(key, 0) for key in listed)
        if state.trained_tokens != positions:
            faults.append(f"state {state.epoch} counts {state.trained_tokens} positions, its shards hold {positions}")
        previous = listed
    if lost := shard_positions.keys() - set(previous):
        faults.append(f"{len(lost)} shards were never learned from")
    if unknown := set(previous) - shard_positions.keys():
        faults.append(f"the trainer learned from {len(unknown)} shards that were never written")
    return faults


@dataclass
class StateWatcher:
    """Collects the states that a training run saves, and evaluates their drafts. It misses states between two polls."""

    registry: Registry
    held_out: Sequence[RequestTrace]
    states: list[TrainerState] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    _newest_epoch: int = 0

    def __post_init__(self) -> None:
        self._session = Session(*untrained_draft(), Recipe(), torch.device("cpu"))
        vocab = self._session.draft.config.vocab_size
        self._examples = [e for trace in self.held_out for e in examples_of(trace, vocab)]

    @property
    def consumed(self) -> set[str]:
        """Keys of the shards that the newest state has learned from."""
        return set(self.states[-1].consumed) if self.states else set()

    def poll(self) -> None:
        """Collect and evaluate the newest state, unless it was collected before."""
        newest = self.registry.last_trainer_state_epoch()
        if newest == self._newest_epoch:
            return
        with contextlib.suppress(ObjectMissing):  # the trainer may delete a state while it is read
            stored = self.registry.trainer_state()
            if stored is not None:
                self._newest_epoch = newest
                self._collect(*stored)

    def _collect(self, state: TrainerState, data: bytes) -> None:
        from safetensors.torch import load

        self._session.restore(load(data))
        served, vocabulary = self._session.served, self._session.vocabulary
        results = [evaluate(served, [example], vocabulary, DRAFT_STEPS) for example in self._examples]
        rounds, answers = tuple(r.rounds for r in results), tuple(r.tokens for r in results)
        self.states.append(state)
        self.evaluations.append(Evaluation(state.trained_tokens, state.step, rounds, answers))

    def acceptance_length_at(self, positions: float) -> float:
        """Held-out acceptance length after ``positions`` trained positions, interpolated between two states."""
        before = [one for one in self.evaluations if one.tokens <= positions]
        after = [one for one in self.evaluations if one.tokens >= positions]
        if not (before and after):
            return (before or after)[-1 if before else 0].acceptance_length
        low, high = before[-1], after[0]
        share = (positions - low.tokens) / max(high.tokens - low.tokens, 1)
        return low.acceptance_length + share * (high.acceptance_length - low.acceptance_length)


@dataclass(frozen=True)
class TrainingRun:
    """A training run from the first portion to the last replay pass.

    Attributes:
        shard_positions: the positions of every shard that was written, by its key.
        faults: the faults that the audit found.
    """

    watcher: StateWatcher
    shard_positions: dict[str, int]
    faults: list[str]
    seconds: float


@dataclass
class Portions:
    """Writes recorded requests to the store, one portion per life of a trainer."""

    registry: Registry
    traces: Sequence[RequestTrace]
    count: int
    requests_per_shard: int
    shard_positions: dict[str, int] = field(default_factory=dict, init=False)

    def write(self, number: int) -> None:
        """Write portion ``number``, counted from 0, as shards."""
        begin, end = (len(self.traces) * n // self.count for n in (number, number + 1))
        portion = list(self.traces[begin:end])
        for start in range(0, len(portion), self.requests_per_shard):
            shard = portion[start : start + self.requests_per_shard]
            (key,) = put_shards(self.registry, shard, self.requests_per_shard, first=len(self.shard_positions))
            self.shard_positions[key] = sum(t.hidden.shape[0] for t in shard if not t.held_out)


def train(s3: S3, root: str, traces: Sequence[RequestTrace], options: argparse.Namespace, *, kills: int) -> TrainingRun:
    """Train on all portions, in a store of its own under ``root``, and kill the trainer ``kills`` times in between."""
    objects = ObjectStore(s3.config(root=root))
    objects.ensure_bucket()
    registry, rng = Registry(objects), random.Random(options.seed)  # noqa: S311 - reproducible moments
    watcher = StateWatcher(registry, [t for t in traces if t.held_out])
    portions = Portions(registry, traces, options.kills + 1, options.requests_per_shard)
    total = sum(t.hidden.shape[0] for t in traces if not t.held_out)
    recipe = TrainingSpec(publish_tokens=max(total // 8, 256), passes=PASSES)
    settings, began = trainer_settings(registry, ensure_model(), recipe), time.monotonic()

    def is_everything_saved() -> bool:
        watcher.poll()
        return watcher.consumed >= portions.shard_positions.keys()

    def is_replay_done() -> bool:
        status = registry.trainer_status()
        return status is not None and status.phase is TrainerPhase.WAITING_FOR_TRACES

    with tempfile.TemporaryDirectory(prefix="aurora-kills-") as scratch:
        log = Path(scratch) / "trainer.log"
        for number in range(kills):
            portions.write(number)
            with running_trainer(s3, settings, log) as process:
                _kill_after(rng.uniform(0, options.max_life_seconds), process, watcher, log)
            watcher.poll()
            status = registry.trainer_status()
            phase = status.phase if status else "starting"
            saved = f"{len(watcher.consumed)} of {len(portions.shard_positions)} shards saved"
            print(f"{root}, kill {number + 1}: {phase}, {saved}", flush=True)
        with running_trainer(s3, settings, log) as process:
            for number in range(kills, portions.count):
                portions.write(number)
                wait_for("all shards", is_everything_saved, process, log)
            wait_for("the last replay", is_replay_done, process, log)
            stop_trainer(process)
        watcher.poll()
        faults = audit_states(watcher.states, portions.shard_positions)
        for version in range((registry.last_version() or 0) + 1):
            # Fetching verifies every digest.
            registry.fetch_checkpoint(registry.registration(version), Path(scratch) / str(version))
    return TrainingRun(watcher, portions.shard_positions, faults, time.monotonic() - began)


def _kill_after(seconds: float, process: subprocess.Popen[bytes], watcher: StateWatcher, log: Path) -> None:
    """Collect states for ``seconds``, then kill the trainer with SIGKILL."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the trainer ended by itself\n{log.read_text()[-4000:]}")
        watcher.poll()
        time.sleep(POLL_SECONDS)
    process.kill()
    process.wait()


def table(runs: Mapping[str, TrainingRun]) -> str:
    """A row per run: the shards that the trainer learned from, and the held-out acceptance length over the run."""
    head = ["trainer", "shards", "positions", "steps", "states seen", "faults"]
    head += [*(f"acceptance length at {share:.0%}" for share in SHARES[:-1]), "at the end", "seconds"]
    rows = []
    for name, run in runs.items():
        last, total = run.watcher.states[-1], sum(run.shard_positions.values())
        rows.append(
            [
                name,
                f"{len(last.consumed)} of {len(run.shard_positions)}",
                f"{last.trained_tokens} of {total}",
                str(last.step),
                str(len(run.watcher.states)),
                "; ".join(run.faults) or "none",
                *(f"{run.watcher.acceptance_length_at(share * total):.2f}" for share in SHARES[:-1]),
                f"{run.watcher.evaluations[-1].acceptance_length:.2f}",
                f"{run.seconds:.0f}",
            ]
        )
    return markdown_table(head, rows)


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.kills", __doc__)
    parser.add_argument("--kills", type=int, default=20, help="how often the trainer is killed")
    parser.add_argument(
        "--traffic", choices=list(Domain), default=Domain.EXTRACTION, help="domain of the recorded requests"
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=RECORDED_REQUESTS,
        help=f"recorded requests, held-out ones included, at most {RECORDED_REQUESTS}",
    )
    parser.add_argument("--requests-per-shard", type=int, default=2, help="requests in each shard")
    parser.add_argument("--max-life-seconds", type=float, default=40.0, help="longest life of a trainer before a kill")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments of the kills")
    return parser.parse_args()


def main() -> None:
    options = _options()
    traces = domain_traces(Domain(options.traffic), RECORDED_REQUESTS)[: options.requests]
    load_before = load_average()
    with seaweedfs() as s3:
        runs = {
            f"killed {options.kills} times": train(s3, "killed", traces, options, kills=options.kills),
            "undisturbed": train(s3, "undisturbed", traces, options, kills=0),
        }
    killed, undisturbed = (
        RecipeRun(
            traffic=options.traffic,
            match=Match.TRAFFIC,
            configuration=name,
            seed=options.seed,
            evaluations=(run.watcher.evaluations[-1],),
            positions=run.watcher.states[-1].trained_tokens,
            cpu_seconds=0.0,
        )
        for name, run in runs.items()
    )
    held_out = len(killed.evaluations[0].rounds)
    print(f"\n{load_around(load_before)}; {held_out} held-out requests\n")
    print(table(runs))
    gap = difference([(killed, undisturbed)])
    print(f"\nacceptance length at the end, killed minus undisturbed [95 %, over held-out requests]: {gap}")
    sys.exit(any(run.faults for run in runs.values()))


if __name__ == "__main__":
    main()

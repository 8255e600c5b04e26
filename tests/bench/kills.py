"""A trainer that is killed with -9 at random moments learns what an undisturbed one learns, and no shard twice.

Recorded requests arrive in portions, in a real S3: one portion per life of the trainer, which then ends at a random
moment, be it start, training, replay, saving or publishing; the last life trains to the end. The undisturbed trainer
gets the next portion when it saved the one before. Every state that is saved on the way is audited, and its draft is
tried on the held-out requests. Ends with 1 when the audit finds anything.

    python -m tests.bench.kills [--kills 20] [--traffic extraction] [--requests 160] [--shard 2] [--within 40]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
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
from tests.bench.learning.configurations import DRAFT_STEPS
from tests.bench.learning.learner import Look
from tests.bench.learning.matching import Match
from tests.bench.learning.replay import Run
from tests.bench.learning.report import difference
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

RECORDED = 160
POLL_S = 0.5
PASSES = 4
"""As many as are made beside fresh batches: what is replayed afterwards says nothing of kills."""
MARKS = (0.25, 0.5, 0.75, 1.0)


def audit(states: Sequence[TrainerState], fresh: Mapping[str, int]) -> list[str]:
    """What is wrong with the states that one training run saved, oldest first; ``fresh`` holds the positions of every
    shard. A state's weights learnt from just the shards that it lists, so the lists say it all."""
    wrong = []
    former: tuple[str, ...] = ()
    for state in states:
        listed = state.consumed
        if len(set(listed)) < len(listed):
            wrong.append(f"state {state.epoch} learnt from a shard twice")
        if listed[: len(former)] != former:
            wrong.append(f"state {state.epoch} forgot what a former state had learnt")
        if state.trained_tokens != sum(fresh.get(key, 0) for key in listed):
            wrong.append(f"state {state.epoch} counts {state.trained_tokens} positions, its shards hold others")
        former = listed
    if lost := fresh.keys() - set(former):
        wrong.append(f"{len(lost)} shards were never learnt from")
    if unknown := set(former) - fresh.keys():
        wrong.append(f"{len(unknown)} shards were learnt from that nobody wrote")
    return wrong


@dataclass
class Watch:
    """The states that a training run saved, as far as they were seen, and how good their drafts were."""

    registry: Registry
    held_out: Sequence[RequestTrace]
    states: list[TrainerState] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    _newest: int = 0

    def __post_init__(self) -> None:
        self._session = Session(*untrained_draft(), Recipe(), torch.device("cpu"))
        vocab = self._session.draft.config.vocab_size
        self._examples = [e for trace in self.held_out for e in examples_of(trace, vocab)]

    @property
    def consumed(self) -> set[str]:
        return set(self.states[-1].consumed) if self.states else set()

    def look(self) -> None:
        """Take over the newest state, if it is new."""
        newest = self.registry.last_trainer_state_epoch()
        if newest == self._newest:
            return
        with contextlib.suppress(ObjectMissing):  # older states are deleted while this one looks
            found = self.registry.trainer_state()
            if found is not None:
                self._newest = newest
                self._take(*found)

    def _take(self, state: TrainerState, data: bytes) -> None:
        from safetensors.torch import load

        tensors = load(data)
        self._session.restore(tensors)
        served, vocabulary = self._session.served, self._session.vocabulary
        seen = [evaluate(served, [e], vocabulary, DRAFT_STEPS) for e in self._examples]
        self.states.append(state)
        self.looks.append(
            Look(state.trained_tokens, state.step, tuple(s.rounds for s in seen), tuple(s.tokens for s in seen))
        )

    def accept_length_at(self, tokens: float) -> float:
        """Held-out acceptance length after ``tokens`` positions, between the states on either side."""
        before = [look for look in self.looks if look.tokens <= tokens]
        after = [look for look in self.looks if look.tokens >= tokens]
        if not (before and after):
            return (before or after)[-1 if before else 0].accept_length
        low, high = before[-1], after[0]
        way = (tokens - low.tokens) / max(high.tokens - low.tokens, 1)
        return low.accept_length + way * (high.accept_length - low.accept_length)


@dataclass(frozen=True)
class Trained:
    """A whole training run."""

    watch: Watch
    fresh: dict[str, int]
    kills: list[str]
    wrong: list[str]
    seconds: float


def train(s3: S3, root: str, traces: Sequence[RequestTrace], options: argparse.Namespace, *, killed: bool) -> Trained:
    """Train to the end of the portions, ending each life but the last by kill -9 if it is to be ``killed``."""
    objects = ObjectStore(s3.config(root=root))
    objects.ensure_bucket()
    registry, chance = Registry(objects), random.Random(options.seed)  # noqa: S311 - reproducible moments
    watch = Watch(registry, [t for t in traces if t.held_out])
    total = sum(t.hidden.shape[0] for t in traces if not t.held_out)
    settings = trainer_settings(
        registry, ensure_model(), TrainingSpec(publish_tokens=max(total // 8, 256), passes=PASSES)
    )
    cuts = [len(traces) * i // (options.kills + 1) for i in range(options.kills + 2)]
    fresh, kills, began = dict[str, int](), list[str](), time.monotonic()

    def arrive(number: int) -> None:
        part = list(traces[cuts[number] : cuts[number + 1]])
        for start in range(0, len(part), options.shard):
            shard = part[start : start + options.shard]
            (key,) = put_shards(registry, shard, options.shard, first=len(fresh))
            fresh[key] = sum(t.hidden.shape[0] for t in shard if not t.held_out)

    def saved_all() -> bool:
        watch.look()
        return watch.consumed >= fresh.keys()

    with tempfile.TemporaryDirectory(prefix="aurora-kills-") as scratch:
        log = Path(scratch) / "trainer.log"
        for number in range(options.kills if killed else 0):
            arrive(number)
            with running_trainer(s3, settings, log) as process:
                end = time.monotonic() + chance.uniform(0, options.within)
                while time.monotonic() < end:
                    if process.poll() is not None:
                        raise AssertionError(f"the trainer ended by itself\n{log.read_text()[-4000:]}")
                    watch.look()
                    time.sleep(POLL_S)
                process.kill()
                process.wait()
            watch.look()
            status = registry.trainer_status()
            kills.append(
                f"{status.phase if status else 'starting'}, {len(watch.consumed)} of {len(fresh)} shards saved"
            )
            print(f"{root}, kill {number + 1}: {kills[-1]}", flush=True)
        with running_trainer(s3, settings, log) as process:
            for number in range(options.kills if killed else 0, options.kills + 1):
                arrive(number)
                wait_for("all shards", saved_all, process, log)

            def done() -> bool:
                status = registry.trainer_status()
                return status is not None and status.phase is TrainerPhase.WAITING_FOR_TRACES

            wait_for("the last replay", done, process, log)
            stop_trainer(process)
        watch.look()
        wrong = audit(watch.states, fresh)
        for version in range((registry.last_version() or 0) + 1):
            # Every digest is verified.
            registry.fetch_checkpoint(registry.registration(version), Path(scratch) / str(version))
    return Trained(watch, fresh, kills, wrong, time.monotonic() - began)


def table(runs: Mapping[str, Trained]) -> str:
    """Markdown: what each run learnt from, and the held-out acceptance length on the way."""
    marks = [f"at {mark:.0%}" for mark in MARKS[:-1]]
    head = ["", "shards", "positions", "steps", "states seen", "audit", *marks, "at the end", "s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, run in runs.items():
        last, total = run.watch.states[-1], sum(run.fresh.values())
        cells = [
            name,
            f"{len(last.consumed)} of {len(run.fresh)}",
            f"{last.trained_tokens} of {total}",
            str(last.step),
            str(len(run.watch.states)),
            "; ".join(run.wrong) or "nothing",
            *(f"{run.watch.accept_length_at(mark * total):.2f}" for mark in MARKS[:-1]),
            f"{run.watch.looks[-1].accept_length:.2f}",
            f"{run.seconds:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--traffic", choices=list(Domain), default=Domain.EXTRACTION)
    parser.add_argument("--requests", type=int, default=RECORDED, help="recorded requests, held-out ones included")
    parser.add_argument("--shard", type=int, default=2, help="requests per shard")
    parser.add_argument("--within", type=float, default=40.0, help="longest life before a kill, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    traces = domain_traces(Domain(options.traffic), RECORDED)[: options.requests]
    before = os.getloadavg()[0]
    with seaweedfs() as s3:
        runs = {
            f"killed {options.kills} times": train(s3, "killed", traces, options, killed=True),
            "undisturbed": train(s3, "undisturbed", traces, options, killed=False),
        }
    last = [
        Run(
            traffic=options.traffic,
            match=Match.TRAFFIC,
            configuration=name,
            seed=options.seed,
            looks=(run.watch.looks[-1],),
            positions=run.watch.states[-1].trained_tokens,
            cpu_seconds=0.0,
        )
        for name, run in runs.items()
    ]
    held = last[0].looks[0]
    print(f"\nload {before:.1f} to {os.getloadavg()[0]:.1f}; {len(held.rounds)} held-out requests\n")
    print(table(runs))
    print(f"\nkilled against undisturbed at the end [95 %, over held-out requests]: {difference([(last[0], last[1])])}")
    sys.exit(any(run.wrong for run in runs.values()))


if __name__ == "__main__":
    main()

"""How fast a draft learns from recorded JSON requests: tokens against simulated acceptance length, one recipe per run.

``python -m tests.bench.learning_smoke --learning-rate 0.002`` prints one line per shard. CPU seconds, not wall-clock
time, are reported, because other work shares the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import time

import torch
from tests.assets.model import ensure_model
from tests.assets.traces import json_traces

from aurora_api.speculator import Target
from aurora_runtime.training import init
from aurora_runtime.training.evaluate import evaluate
from aurora_runtime.training.examples import Example, Vocabulary, examples_of
from aurora_runtime.training.losses import LOSSES
from aurora_runtime.training.recipe import Recipe
from aurora_runtime.training.replay import Memory, pack
from aurora_runtime.training.session import Session
from aurora_runtime.training.target import load_target

VOCABULARY = 16384
SHARD_REQUESTS = 30
STEPS = 3


def curve(recipe: Recipe, requests: int) -> None:
    """Train one draft on ``requests`` recorded requests and print its learning curve."""
    target = load_target(Target(model=str(ensure_model())))
    config = init.draft_config(target, VOCABULARY)
    ids = init.vocabulary(VOCABULARY, target.identity.vocab_size, target.special_tokens)
    vocabulary = Vocabulary.of(ids, target.identity.vocab_size)
    traces = json_traces(requests)
    train = [e for t in traces if not t.held_out for e in examples_of(t, vocabulary)]
    held_out = [e for t in traces if t.held_out for e in examples_of(t, vocabulary)]
    session = Session(init.initial_draft(target, config, ids), vocabulary, recipe, torch.device("cpu"))
    memory = Memory(1 << 30)
    answers, cpu = 0, 0.0
    print(f"{'answer tokens':>13} {'steps':>6} {'acceptance':>10} {'first hit':>9} {'positions/CPU s':>15}")
    for start in range(0, len(train), SHARD_REQUESTS):
        shard = train[start : start + SHARD_REQUESTS]
        began = time.process_time()
        one_shard(session, memory, shard)
        cpu += time.process_time() - began
        answers += sum(e.roots for e in shard)
        seen = evaluate(session.draft, held_out, vocabulary, STEPS)
        rate = session.seen / cpu
        print(f"{answers:13d} {session.steps:6d} {seen.accept_length:10.3f} {seen.first_hits:9.3f} {rate:15.0f}")
    print(f"peak resident memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


def one_shard(session: Session, memory: Memory, shard: list[Example]) -> None:
    """What the trainer does with a fresh shard."""
    for example in shard:
        memory.add(example)
    for group in pack(shard, session.recipe.batch_slots):
        session.step(group)
        for _ in range(session.recipe.replay):
            session.step(memory.sample(session.recipe.batch_slots, session.generator))


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--loss", choices=sorted(LOSSES), default="forward_kl")
    defaults = Recipe()
    for name in ("learning_rate", "replay", "batch_slots", "unroll_steps", "warmup_steps", "clip", "prompt_weight"):
        value = getattr(defaults, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args())
    requests, loss = options.pop("requests"), LOSSES[options.pop("loss")]
    curve(dataclasses.replace(defaults, loss=loss, **options), requests)


if __name__ == "__main__":
    main()

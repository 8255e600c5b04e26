"""One rank of ``test_ranks.py`` under torchrun: ``-m tests.unit.training.ranked FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed.distributed_c10d
from safetensors.torch import save_file

from aurora_runtime.training.data.examples import Example, examples_of
from aurora_runtime.training.optim.ranks import Ranks
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.optim.shared_session import SharedSession, run_follower
from aurora_runtime.training.optim.vocabulary_remap import remapped
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace

CPU = torch.device("cpu")
RECIPE = Recipe(learning_rate=5e-3, discard=0.3)
STEPS = 8  # some follow a save, some a restore, and some a change of the vocabulary map


def session_and_batches(folder: Path, ranks: Ranks | None) -> tuple[Session, list[list[Example]]]:
    """A session, and batches of very different requests: long and short, chains and trees, and one alone."""
    draft, vocabulary = tiny.draft_of(tiny.target(folder / "target"))
    session = SharedSession(draft, vocabulary, RECIPE, CPU, ranks) if ranks else Session(draft, vocabulary, RECIPE, CPU)
    traces = [tiny.trace(seed, answer=5 + 9 * (seed % 5)) for seed in range(12)] + [tree_trace(s) for s in range(6)]
    examples = [e for trace in traces for e in examples_of(trace, tiny.VOCAB)]
    return session, [examples[:1], *(examples[i :: STEPS - 1] for i in range(STEPS - 1))]


def learn(session: Session, batches: list[list[Example]]) -> list[float]:
    """Take a step on each batch; returns the losses.

    After some steps the session restores its own state, changes its vocabulary map, or saves its state.
    """
    losses = list[float]()
    for step, batch in enumerate(batches):
        losses.append(session.step(batch))
        if step == 2:
            session.restore({name: tensor.clone() for name, tensor in session.state().items()})
        if step == 4:
            ids = torch.arange(tiny.VOCAB - tiny.DRAFT_VOCAB, tiny.VOCAB)
            session.restore(remapped(session.state(), ids, session.draft.embedding))
        if step == 5:
            session.state()
    return losses


def refuse(*_: object) -> NoReturn:
    raise AssertionError("ranks exchange no pickles")


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    for pickler in ("_pickler", "_unpickler"):
        setattr(torch.distributed.distributed_c10d, pickler, refuse)
    ranks = Ranks(CPU)
    losses = list[float]()
    if ranks.leads:
        session, batches = session_and_batches(folder, ranks)
        losses = learn(session, batches)
        state = session.state()
        ranks.stop_followers()
    else:
        followed = run_follower(ranks, CPU)
        assert followed is not None
        state = followed.state()
    save_file({**state, "losses": torch.tensor(losses)}, folder / f"rank{rank}.safetensors")


if __name__ == "__main__":
    main()

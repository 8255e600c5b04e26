"""A draft that has learned something, within about a minute of one core and without a serving engine.

It exists for what a random draft cannot show: rounds in which drafts are accepted. Invariant: the trained draft and the
one it began as are of one lineage (the same vocabulary map and tensors), so they may be swapped for one another in a
running server.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.data.held_out import HeldOutSet
from aurora_runtime.training.data.replay import pack
from aurora_runtime.training.model import checkpoint, initial_draft
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.target import TargetModel, load_target
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from tests.assets.model import ensure_model
from tests.assets.recorded_traces import domain_traces, json_traces
from tests.traffic.prompts import Domain

HELD_OUT_LIMIT = 48
SPECIALIST_PASSES = 2
NUDGE = 1e-3


@dataclass(frozen=True)
class Lesson:
    """A session after one pass over the training side of some traces, what was held out, and the tokens it saw."""

    session: Session
    held_out: HeldOutSet
    trained_tokens: int


def learn(draft: DraftModel, vocabulary: VocabularyMap, traces: Sequence[RequestTrace], passes: int = 1) -> Lesson:
    """Train ``draft`` in place on every trace that is not held out."""
    session = Session(draft, vocabulary, Recipe(), torch.device("cpu"))
    held_out, examples = HeldOutSet(HELD_OUT_LIMIT), []
    for trace in traces:
        if trace.held_out:
            held_out.add(trace.request, tuple(examples_of(trace, draft.config.vocab_size)))
        else:
            examples += examples_of(trace, draft.config.vocab_size)
    for _ in range(passes):
        for group in pack(examples, session.recipe.batch_slots):
            session.step(group)
    return Lesson(session, held_out, sum(e.fresh for e in examples))


def target(model: Path | None = None) -> TargetModel:
    """What the trainer takes of the model in ``model`` (SmolLM2)."""
    return load_target(TargetSpec(model=str(model or ensure_model())))


def day_0(model: Path | None = None) -> tuple[DraftModel, VocabularyMap]:
    """The first draft of a lineage for the model in ``model`` (SmolLM2), as the trainer makes it."""
    base, size = target(model), DraftSpec().vocab_size
    ids = initial_draft.vocabulary(size, base.identity.vocab_size, base.special_tokens)
    draft = initial_draft.initial_draft(base, initial_draft.draft_config(base, size), ids)
    return draft, VocabularyMap.of(ids, base.identity.vocab_size)


def write_specialist(model: Path, domain: Domain, folder: Path) -> Path:
    """Write what the trainer's initial draft becomes on one domain's requests alone, below ``folder``, once.

    On held-out requests: acceptance length 2.5 on JSON extraction and 1.05 on SQL after the first, 2.1 on SQL and 1.1
    on JSON extraction after the second (4-token rounds, simulated).
    """
    done = folder / f"only-{domain}"
    if not done.exists():
        draft, vocabulary = day_0(model)
        learn(draft, vocabulary, domain_traces(domain), passes=SPECIALIST_PASSES)
        part = folder / f".only-{domain}.part"
        shutil.rmtree(part, ignore_errors=True)
        checkpoint.export(draft, vocabulary.to_target, part)
        part.rename(done)
    return done


def nudge(draft: Path, folder: Path, seed: int) -> Path:
    """Another draft that is as good: every weight moved by about a thousandth, as by a further step of training."""
    shutil.copytree(draft, folder)
    file = folder / "model.safetensors"
    tensors, random = load_file(file), torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            moved = tensor.float() * (1 + NUDGE * torch.randn(tensor.shape, generator=random))
            tensors[name] = moved.to(tensor.dtype)
    save_file(tensors, file)
    return folder


def write_untrained_and_trained(model: Path, folder: Path) -> tuple[Path, Path]:
    """Write the trainer's initial draft for the model in ``model``, and what it becomes on the recorded JSON requests,
    as checkpoints in SGLang's format below ``folder``; returns their directories."""
    draft, vocabulary = day_0(model)
    untrained, trained = folder / "untrained", folder / "trained"
    checkpoint.export(draft, vocabulary.to_target, untrained)
    learn(draft, vocabulary, json_traces())
    checkpoint.export(draft, vocabulary.to_target, trained)
    return untrained, trained

"""Trained drafts, made within about a minute of one core and without a serving engine.

Tests need them for verify rounds in which draft tokens are accepted, which a random draft cannot produce. Invariant: a
trained draft and its untrained start belong to one lineage (same vocabulary map, same tensor shapes). They may
therefore replace each other in a running server.
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
from aurora_runtime.training.data.held_out_set import HeldOutSet
from aurora_runtime.training.model import checkpoint, initial_draft
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.target.target_model import TargetModel, load_target
from tests.assets.model import ensure_model
from tests.assets.traces.recorded import domain_traces, json_traces
from tests.traffic.prompts import Domain

MAX_HELD_OUT_REQUESTS = 48
SPECIALIST_PASSES = 2
PERTURBATION = 1e-3
"""Standard deviation of the relative change of a weight."""


@dataclass(frozen=True)
class TrainingResult:
    """A training session after its last step."""

    session: Session
    held_out: HeldOutSet
    """The requests that were not trained on."""
    trained_tokens: int
    """Tokens of one pass."""


def train_draft(
    draft: DraftModel, vocabulary: VocabularyMap, traces: Sequence[RequestTrace], passes: int = 1
) -> TrainingResult:
    """Train ``draft`` in place on every trace that is not held out."""
    session = Session(draft, vocabulary, Recipe(), torch.device("cpu"))
    held_out, examples = HeldOutSet(MAX_HELD_OUT_REQUESTS), []
    for trace in traces:
        if trace.held_out:
            held_out.add(trace.request, tuple(examples_of(trace, draft.config.vocab_size)))
        else:
            examples += examples_of(trace, draft.config.vocab_size)
    for _ in range(passes):
        for group in session.recipe.batch_bound.batches(examples):
            session.step(group)
    return TrainingResult(session, held_out, sum(e.fresh for e in examples))


def load_small_target(model: Path | None = None) -> TargetModel:
    """The parts of the target that the trainer needs, from the directory ``model`` (default: SmolLM2)."""
    return load_target(TargetSpec(model=str(model or ensure_model())))


def untrained_draft(model: Path | None = None) -> tuple[DraftModel, VocabularyMap]:
    """The first draft of a lineage, as the trainer makes it, for the target in ``model`` (default: SmolLM2)."""
    target, size = load_small_target(model), DraftSpec().vocab_size
    ids = initial_draft.initial_vocabulary(size, target.identity.vocab_size, target.special_tokens)
    draft = initial_draft.initial_draft(target, initial_draft.draft_config(target, size), ids)
    return draft, VocabularyMap.of(ids, target.identity.vocab_size)


def write_specialist(model: Path, domain: Domain, folder: Path) -> Path:
    """The directory of a draft that was trained on one domain only. The first call trains the draft, below ``folder``.

    Simulated acceptance length on held-out requests, with 4-token rounds:

    ===================  ===============  ====
    trained on           JSON extraction  SQL
    ===================  ===============  ====
    JSON extraction      2.5              1.05
    SQL                  1.1              2.1
    ===================  ===============  ====
    """
    specialist = folder / f"only-{domain}"
    if not specialist.exists():
        draft, vocabulary = untrained_draft(model)
        train_draft(draft, vocabulary, domain_traces(domain), passes=SPECIALIST_PASSES)
        unfinished = folder / f".only-{domain}.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        checkpoint.export(draft, vocabulary.to_target, unfinished)
        unfinished.rename(specialist)
    return specialist


def write_perturbed_copy(draft: Path, folder: Path, seed: int) -> Path:
    """Write another draft that is as good as ``draft``, and return ``folder``.

    Every weight changes by about a thousandth, which is as much as a further training step would change it.
    """
    shutil.copytree(draft, folder)
    file = folder / "model.safetensors"
    tensors, generator = load_file(file), torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            perturbed = tensor.float() * (1 + PERTURBATION * torch.randn(tensor.shape, generator=generator))
            tensors[name] = perturbed.to(tensor.dtype)
    save_file(tensors, file)
    return folder


def write_untrained_and_trained(model: Path, folder: Path) -> tuple[Path, Path]:
    """Write the trainer's initial draft for the target in ``model``, untrained and trained on recorded JSON requests.

    Both are checkpoints in SGLang's format, below ``folder``. Returns the two directories.
    """
    draft, vocabulary = untrained_draft(model)
    untrained, trained = folder / "untrained", folder / "trained"
    checkpoint.export(draft, vocabulary.to_target, untrained)
    train_draft(draft, vocabulary, json_traces())
    checkpoint.export(draft, vocabulary.to_target, trained)
    return untrained, trained

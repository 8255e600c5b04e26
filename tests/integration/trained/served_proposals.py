"""Does the pass that trains on captured rounds make the proposals that the engine made in these rounds?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.traces import RequestTrace, decode
from aurora_runtime.training.data.batch import collate
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.unroll import unroll
from aurora_runtime.training.model.vocabulary_map import VocabularyMap
from tests.assets.traces.verify_nodes import Node, nodes_by_path, nodes_of


def collect(spool: Path, prompts: list[list[int]]) -> list[RequestTrace]:
    """The traces of ``prompts`` in their order, once they are all in the spool."""
    deadline = time.monotonic() + 120
    found: dict[tuple[int, ...], RequestTrace] = {}
    wanted = [tuple(p) for p in prompts]
    while not found.keys() >= set(wanted):
        assert time.monotonic() < deadline, f"{len(found)} of {len(wanted)} traces in the spool"
        time.sleep(1)
        for data in spool.glob("**/*.safetensors"):
            if data.with_suffix(".json").exists():
                traces = decode(data.read_bytes())
                found |= {tuple(t.tokens[: t.prompt_length].tolist()): t for t in traces}
    return [found[prompt] for prompt in wanted]


@torch.inference_mode()
def proposals(
    draft: DraftModel, vocabulary: VocabularyMap, spec: DraftSpec, trace: RequestTrace
) -> Iterator[tuple[Node, set[int]]]:
    """The verify nodes that have children, and the proposals of the training pass there.

    The proposal is the most likely token.
    """
    (example,) = examples_of(trace, draft.config.vocab_size)
    batch = collate([example], spec.steps, vocabulary, with_rejected=True)
    unrolled = nodes_by_path(batch, unroll(draft, batch.trunk, batch.levels), 0)
    for node in nodes_of(trace, spec.steps):
        # The last round may reach beyond the answer's end, where nothing is trained.
        if node.children and (node.slot, node.path) in unrolled:
            best = draft.logits(unrolled[node.slot, node.path].output).topk(1).indices
            yield node, set(vocabulary.to_target[best].tolist())


@dataclass
class Comparison:
    """Counts of proposals by place: first of a round, after an accepted node, after a rejected node."""

    same: Counter[str] = field(default_factory=Counter)
    total: Counter[str] = field(default_factory=Counter)

    def add(self, proposed: Iterable[tuple[Node, set[int]]]) -> None:
        for node, ours in proposed:
            place = "round" if not node.path else "accepted" if node.accepted else "rejected"
            self.same[place] += len(ours & set(node.children))
            self.total[place] += len(node.children)

    def share(self, place: str) -> float:
        """The share of the engine's proposals at ``place`` that the training pass makes too."""
        return self.same[place] / self.total[place]

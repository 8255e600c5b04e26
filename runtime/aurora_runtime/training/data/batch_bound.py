"""Groups examples into batches of a bounded padded size.

Roots are what a step learns from, so their number is the size of a batch. Slots are what a step computes and holds
beside them: the prompts. Bounding the slots alone would make each request with a long prompt a batch of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aurora_runtime.training.data.examples import Example


@dataclass(frozen=True)
class BatchBound:
    """The most roots and slots of a batch, padding included."""

    roots: int
    slots: int

    def batches(self, examples: Sequence[Example], *, first_only: bool = False) -> list[list[Example]]:
        """Consecutive ``examples`` in batches within the bound; a larger example goes alone.

        ``first_only`` stops after the first batch.
        """
        batches: list[list[Example]] = []
        roots = slots = 0
        for example in examples:
            roots, slots = max(roots, example.root_count), max(slots, example.slots)
            count = len(batches[-1]) + 1 if batches else 0
            if batches and count * roots <= self.roots and count * slots <= self.slots:
                batches[-1].append(example)
                continue
            if batches and first_only:
                break
            batches.append([example])
            roots, slots = example.root_count, example.slots
        return batches

"""Groups examples into batches of a bounded padded size."""

from __future__ import annotations

from collections.abc import Sequence

from aurora_runtime.training.data.examples import Example


def batch_by_slots(examples: Sequence[Example], max_slots: int, *, first_only: bool = False) -> list[list[Example]]:
    """Consecutive ``examples`` in batches whose padded size stays within ``max_slots``; a larger example goes alone.

    ``first_only`` stops after the first batch.
    """
    batches: list[list[Example]] = []
    widest = 0
    for example in examples:
        widest = max(widest, example.slots)
        if batches and (len(batches[-1]) + 1) * widest <= max_slots:
            batches[-1].append(example)
            continue
        if batches and first_only:
            break
        batches.append([example])
        widest = example.slots
    return batches

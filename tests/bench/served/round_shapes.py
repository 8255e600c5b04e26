"""Shapes of a verify round, as the command line writes them: a chain of drafts, or a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.training import MAX_UNROLL_STEPS

SHAPE_METAVAR: Final = "STEPS[xBRANCHESxTOKENS]"


def parse_shape(text: str) -> DraftSpec:
    """Parse ``3``, a chain of three draft steps, or ``2x3x8``, a tree.

    ``2x3x8`` has two draft steps of three branches each, and the target verifies the eight most likely nodes.

    Raises:
        ValueError: ``text`` is neither form.
    """
    steps, *tree = map(int, text.split("x"))
    if not tree:
        return DraftSpec(steps=steps, draft_tokens=steps + 1)
    branching, draft_tokens = tree
    return DraftSpec(steps=steps, branching=branching, draft_tokens=draft_tokens)


def describe_shape(spec: DraftSpec) -> str:
    """``3 steps``, or ``2 steps, 3 branches, 8 tokens``."""
    tree = f", {spec.branching} branches, {spec.tokens_per_round} tokens" if spec.branching > 1 else ""
    return f"{spec.steps} steps{tree}"


def unroll_steps(shapes: Sequence[DraftSpec]) -> int:
    """The steps that training unrolls for ``shapes``: the steps of the deepest, at most ``MAX_UNROLL_STEPS``."""
    return min(max(shape.steps for shape in shapes), MAX_UNROLL_STEPS)

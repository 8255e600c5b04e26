"""Lengths of a draft's proposal in a verify round, as the command line writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aurora_api.v1alpha1.draft import DraftSpec

SHAPE_METAVAR: Final = "STEPS"


def parse_shape(text: str) -> DraftSpec:
    """Parse ``3``, three draft steps. Raises ValueError for a text that is no number."""
    return DraftSpec(steps=int(text))


def describe_shape(spec: DraftSpec) -> str:
    """Such as ``3 steps``."""
    return f"{spec.steps} steps"


def unroll_steps(shapes: Sequence[DraftSpec]) -> int:
    """The steps that training unrolls for ``shapes``: the steps of the deepest."""
    return max(shape.steps for shape in shapes)

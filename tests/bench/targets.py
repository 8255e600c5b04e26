"""How much of each family's targets does an initial draft copy, and how exactly?

Writes a tiny target of each family with transformers, with random weights, and compares the layer of its initial draft
with the target's last layer. Also compares how likely the target accepts a proposal of the initial draft, and of the
same draft with a random layer.

Prints a row per family and format. Needs a CPU only.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from tests.assets.copied_layers import expected_acceptance, initial_draft_of, layer_errors, with_random_layer
from tests.assets.tiny_targets import TINY_TARGETS, TinyTarget, write_tiny_target
from tests.bench.bench_command import bench_parser, commit
from tests.bench.markdown import markdown_table

HEAD = ("Target", "Stored as", "Attention", "Feed-forward layer", "Head", "Initial draft", "Random layer")
SEEDS = range(3)


def row(tiny: TinyTarget, stored: str, folder: Path) -> list[str]:
    """The cells of one target: three errors, then two chances of acceptance."""
    model = write_tiny_target(tiny, folder, stored)
    _, draft = initial_draft_of(folder)
    errors, random = layer_errors(model, draft), with_random_layer(draft)
    chances = [statistics.fmean(expected_acceptance(model, each, seed) for seed in SEEDS) for each in (draft, random)]
    figures = (errors.attention, errors.feed_forward, errors.head, *chances)
    return [tiny.name, stored, *(f"{figure:.3f}" for figure in figures)]


def main() -> None:
    bench_parser("tests.bench.targets", __doc__).parse_args()
    rows = []
    for tiny in TINY_TARGETS:
        for stored in tiny.formats:
            with tempfile.TemporaryDirectory(prefix="targets-bench-") as folder:
                rows.append(row(tiny, stored, Path(folder)))
    print(f"commit {commit()}\n")
    print(markdown_table(HEAD, rows))


if __name__ == "__main__":
    main()

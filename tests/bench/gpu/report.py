"""The report of ``make test-gpu``: tables in Markdown, each row with the device that it comes from. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from tests.bench.markdown import markdown_table

NO_GPU: Final = "CPU: no GPU has run this row"
NO_GPU_HERE: Final = "No GPU has run the rows of this section."
KERNEL_HEAD: Final = ("kernel", "size", "implementation", "ms", "share of roofline", "peak MiB", "difference", "device")
RUN_HEAD: Final = ("run", "shape", "kernels", "steps", "loss", "positions/s", "peak MiB", "device")


@dataclass(frozen=True)
class Result:
    """What became of one part.

    Attributes:
        obstacle: why the part did not run. Empty where it ran.
        figures: the JSON object of a part that prints one.
        output: the printed text of any other part, or the end of a failed one's errors.
    """

    name: str
    command: str
    obstacle: str = ""
    failed: bool = False
    seconds: float = 0.0
    figures: dict[str, Any] | None = None
    output: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def device_of(figures: dict[str, Any]) -> str:
    """The GPU's name, or a statement that there was none."""
    return NO_GPU if figures["device"] == "CPU" else str(figures["device"])


def report(results: Sequence[Result], title: str, *, on_gpu: bool) -> str:
    """All results: kernels, training runs, the tables of other benches, and what did not run or failed."""
    sections = [f"# {title}"]
    kernels = [row for result in results if result.figures for row in kernel_rows(result.figures)]
    if kernels:
        sections.append("## Kernels\n\n" + KERNEL_NOTE + "\n\n" + markdown_table(KERNEL_HEAD, kernels))
    runs = [run_row(result) for result in results if result.figures and "losses" in result.figures]
    if runs:
        sections.append("## Training runs\n\n" + markdown_table(RUN_HEAD, runs))
    for result in results:
        if result.output and not result.failed:
            note = "" if on_gpu else f"{NO_GPU_HERE}\n\n"
            sections.append(f"## {result.name}\n\n`{result.command}`\n\n{note}{result.output.strip()}")
    failures = [(result.name, f"`{result.command}`", result.output[-300:].replace("\n", " ")) for result in results]
    failures = [row for row, result in zip(failures, results, strict=True) if result.failed]
    if failures:
        sections.append("## Failed\n\n" + markdown_table(("part", "command", "end of its errors"), failures))
    skipped = [(result.name, f"`{result.command}`", result.obstacle) for result in results if result.obstacle]
    if skipped:
        sections.append("## Not run here\n\n" + markdown_table(("part", "command", "why"), skipped))
    return "\n\n".join(sections) + "\n"


KERNEL_NOTE: Final = (
    "Time is the median of single calls, with a cold L2 cache. The share of the roofline is the shortest time in which "
    "this device can move each input and output once, by its own measured copy, divided by that median. The difference "
    "is the largest against torch, relative to the largest value."
)


def kernel_rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of one kernel. Without a GPU there are no times, because an interpreter shows no speed."""
    on_gpu = figures["device"] != "CPU"
    rows: list[tuple[str, ...]] = []
    for row in figures.get("rows", []):
        middle = statistics.median(row["milliseconds"])
        share = f"{row['least_milliseconds'] / middle:.0%}" if on_gpu else "-"
        time, peak = (f"{middle:.3f}", f"{row['peak_mebibytes']:,.0f}") if on_gpu else ("-", "-")
        difference = f"{row['largest_difference']:.1e}"
        rows.append(
            (row["kernel"], row["size"], row["implementation"], time, share, peak, difference, device_of(figures))
        )
    return rows


def run_row(result: Result) -> tuple[str, ...]:
    figures = result.figures or {}
    losses, peak = figures["losses"], figures["peak_mebibytes"]
    return (
        result.name,
        figures["shape"],
        figures["kernels"],
        str(figures["steps"]),
        f"{losses[0]:.2f} to {losses[-1]:.2f}",
        f"{figures['positions_per_second']:,.0f}",
        "-" if peak is None else f"{peak:,.0f}",
        device_of(figures),
    )

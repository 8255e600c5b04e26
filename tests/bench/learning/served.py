"""Does a real engine agree with the simulated learning curves?

SGLang answers the held-out requests with the draft of each evaluation of a run. Recipes are compared by simulation,
which is cheap, and exact on recorded answers. This bench checks the simulation. tests.bench.served measures the speed
of drafts, also against NGRAM.

One server takes all drafts in turn, swapped as in production. The prefix cache is emptied at every swap, because the
same prompts are sent again and cached keys of another draft would cost acceptance.

Prints the acceptance length served, and simulated in brackets, per configuration and evaluation.

Takes about ten minutes with the defaults on two quiet cores (estimated). Needs a CPU only.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.assets.model import ensure_model
from tests.assets.traces.drafted import CHAINS, DRAFT_SHAPES, MESSAGES_BY_DOMAIN
from tests.assets.traces.recorded import MAX_NEW_TOKENS
from tests.bench.bench_command import bench_parser, exit_on_sigterm
from tests.bench.learning.configurations import CONFIGURATIONS, PUBLISHED
from tests.bench.learning.curve import Curve, format_thousands
from tests.bench.learning.curve_plot import Panel, draw_panels
from tests.bench.learning.matching import add_match_option
from tests.bench.learning.recipe_run import EVALUATIONS, RecipeRun, run_recipe
from tests.bench.learning.recorded_traffic import load_traffic
from tests.bench.markdown import markdown_table
from tests.bench.served.servers import DRAFT, Arm, Servers

from aurora_api.v1alpha1.target import DType
from aurora_runtime.cpu.launch_settings import DEFAULT_KV_TOKENS
from aurora_runtime.engine.draft_file_check import WEIGHTS
from aurora_runtime.engine.server_process import EngineSpec
from aurora_runtime.engine.speculation_flags import Eagle3
from aurora_runtime.errors import EngineFault
from aurora_runtime.validation.draft_fetch import FetchedDraft
from aurora_runtime.validation.engines.engine_set import EngineSet
from aurora_runtime.validation.engines.load_client import BatchResult

CONCURRENCY = 2


@dataclass(frozen=True)
class CurvePair:
    """One configuration's curve, simulated and served, at the same evaluations."""

    name: str
    simulated: Curve
    served: Curve


def acceptance_length(result: BatchResult) -> float:
    """Answer tokens per verify round. An answer's first token comes from the prefill and belongs to no round.

    Raises:
        EngineFault: a request failed, or no request was speculated on.
    """
    if result.failures or not result.verify_rounds:
        raise EngineFault(f"{result.failures} requests failed, and there were {result.verify_rounds} verify rounds")
    return (result.tokens - len(result.answers)) / result.verify_rounds


async def serve_in_turn(servers: Servers, folders: Sequence[Path], prompts: Sequence[Sequence[int]]) -> list[float]:
    """The acceptance length with the draft in each of ``folders`` in turn.

    Drafts with equal weights count as one draft. The first evaluations of several configurations are equal.

    Raises:
        EngineFault: a draft was not loaded, or a request failed.
    """
    drafts, arms = dict[str, FetchedDraft](), list[Arm]()
    for folder in folders:
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        draft = drafts.setdefault(digest, FetchedDraft(folder, len(drafts)))
        arms.append(Arm(f"{folder.parent.name}, evaluation {folder.name}", DRAFT, draft))
    await servers.learn_checksums(arms)
    lengths = list[float]()
    for arm in arms:
        await servers.prepare(arm, CONCURRENCY)
        lengths.append(acceptance_length(await servers.run(arm, prompts, CONCURRENCY)))
        print(f"{arm.name}: {lengths[-1]:.2f}", flush=True)
    return lengths


async def start_and_serve(folders: Sequence[Path], prompts: Sequence[Sequence[int]], logs: Path) -> list[float]:
    """Start a server with the first draft, run :func:`serve_in_turn` on it, and stop it."""
    spec = EngineSpec(str(ensure_model()), "cpu", DEFAULT_KV_TOKENS, DType.BFLOAT16.value)
    speculation = {DRAFT: Eagle3(folders[0], 0, DRAFT_SHAPES[CHAINS])}
    async with Servers(EngineSet(spec, logs), speculation, (), MAX_NEW_TOKENS) as servers:
        return await serve_in_turn(servers, folders, prompts)


def curve_pairs(runs: Sequence[RecipeRun], evaluations: Sequence[int], lengths: Sequence[float]) -> Iterator[CurvePair]:
    """Pair the served ``lengths``, run by run and evaluation by evaluation, with the simulated ones."""
    for n, run in enumerate(runs):
        simulated = [run.evaluations[i] for i in evaluations]
        tokens = tuple(float(evaluation.tokens) for evaluation in simulated)
        served = Curve(tokens, tuple(lengths[n * len(evaluations) :][: len(evaluations)]))
        yield CurvePair(run.configuration, Curve(tokens, tuple(e.acceptance_length for e in simulated)), served)


def table(pairs: Sequence[CurvePair]) -> str:
    """A cell is the acceptance length served, and simulated in brackets."""
    head = ["configuration: served (simulated)", *map(format_thousands, pairs[0].served.tokens)]
    rows = []
    for pair in pairs:
        lengths = zip(pair.served.lengths, pair.simulated.lengths, strict=True)
        rows.append([pair.name, *(f"{served:.2f} ({simulated:.2f})" for served, simulated in lengths)])
    return markdown_table(head, rows)


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.learning.served", __doc__)
    parser.add_argument("--traffic", choices=sorted(MESSAGES_BY_DOMAIN), default="json", help="domain to learn from")
    add_match_option(parser)
    parser.add_argument("--requests", type=int, default=160, help="recorded requests, held-out ones included")
    parser.add_argument("--tokens", type=int, help="answer tokens of traffic per run (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every run")
    chosen = [PUBLISHED, *(name for name, each in CONFIGURATIONS.items() if each.is_default)]
    steps = DRAFT_SHAPES[CHAINS].steps
    servable = [name for name, each in CONFIGURATIONS.items() if each.draft_steps == steps]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=servable,
        default=chosen,
        metavar="NAME",
        help=f"configurations to run, of those with {steps} draft steps (see tests.bench.learning --help)",
    )
    parser.add_argument(
        "--evaluations",
        type=int,
        nargs="+",
        choices=range(EVALUATIONS + 1),
        default=[0, 2, 4, 6, 8],
        help="evaluations of each run whose draft is served; 0 is before the first step",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory for served.md and served.svg")
    return parser.parse_args()


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    exit_on_sigterm()
    shapes = dict.fromkeys(CONFIGURATIONS[name].shape for name in options.only)
    traffic = load_traffic(options.traffic, options.requests, shapes)
    held_out = [t for t in next(iter(traffic.traces.values())) if t.held_out]
    prompts = [t.tokens[: t.prompt_length].tolist() for t in held_out]
    with tempfile.TemporaryDirectory(prefix="served-bench-") as work:
        folder = Path(work)
        runs = [
            run_recipe(traffic, name, CONFIGURATIONS[name], options.match, options.seed, options.tokens, folder / name)
            for name in options.only
        ]
        checkpoints = [folder / name / str(number) for name in options.only for number in options.evaluations]
        lengths = asyncio.run(start_and_serve(checkpoints, prompts, folder))
    pairs = list(curve_pairs(runs, options.evaluations, lengths))
    caption = f"{options.traffic}, matched {options.match}, seed {options.seed}, {len(held_out)} held-out requests"
    print(f"\n{caption}\n\n{table(pairs)}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "served.md").write_text(f"{caption}\n\n{table(pairs)}\n")
        panels = [
            Panel(f"{options.traffic}, simulated", {pair.name: [pair.simulated] for pair in pairs}),
            Panel(f"{options.traffic}, served by SGLang", {pair.name: [pair.served] for pair in pairs}),
        ]
        (options.out / "served.svg").write_text(draw_panels([panels]))


if __name__ == "__main__":
    main()

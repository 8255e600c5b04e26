"""The curve again in a real engine: the draft of each look is served by SGLang to the held-out requests.

Simulation decides between recipes because it is cheap and exact on recorded answers; this says whether serving agrees.
What a draft is worth in speed, and beside NGRAM, is tests/bench/served's question. One of its servers takes all drafts
in turn, swapped as in production. Invariant: the prefix cache is emptied at every swap, because the same prompts are
asked again and the keys of another draft would cost acceptance.

    python -m tests.bench.learning.served [--traffic json] [--match traffic] [--only fifo "map, replay 3, averaged"]
                                          [--seed 0] [--looks 0 2 4 6 8] [--out DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.assets.model import ensure_model
from tests.assets.traces.drafted import CHAINS, DRAFT_SHAPES, MESSAGES_BY_DOMAIN
from tests.assets.traces.recorded import MAX_NEW_TOKENS
from tests.bench.learning.configurations import CONFIGURATIONS, PUBLISHED
from tests.bench.learning.curve import Curve, thousands
from tests.bench.learning.matching import Match
from tests.bench.learning.plot import Panel, draw
from tests.bench.learning.recorded import recorded
from tests.bench.learning.replay import LOOKS, Run, run
from tests.bench.served.servers import DRAFT, Arm, Servers

from aurora_api.v1alpha1.target import DType
from aurora_runtime.cpu.launch_settings import DEFAULT_KV_TOKENS
from aurora_runtime.engine.draft_check import WEIGHTS
from aurora_runtime.engine.server_process import EngineSpec
from aurora_runtime.engine.speculation_flags import Eagle3
from aurora_runtime.errors import EngineFault
from aurora_runtime.validation.draft_fetch import FetchedDraft
from aurora_runtime.validation.engine_set import EngineSet
from aurora_runtime.validation.load_client import BatchResult

CONCURRENCY = 2


@dataclass(frozen=True)
class Served:
    """One configuration's curve, simulated and served, at the same looks."""

    name: str
    simulated: Curve
    served: Curve


def accept_length(result: BatchResult) -> float:
    """Answer tokens per verify round; an answer's first token is the prompt's and no round's. Raises
    :class:`EngineFault` when a request failed or none was speculated on."""
    if result.failures or not result.verify_rounds:
        raise EngineFault(f"{result.failures} requests failed, {result.verify_rounds} verify rounds")
    return (result.tokens - len(result.answers)) / result.verify_rounds


async def ask(servers: Servers, folders: Sequence[Path], prompts: Sequence[Sequence[int]]) -> list[float]:
    """The acceptance length with the draft in each of ``folders`` in turn; equal weights are one draft, as those of
    several rows' first looks are. Raises :class:`EngineFault` when one was seen not to be loaded."""
    drafts, arms = dict[str, FetchedDraft](), list[Arm]()
    for folder in folders:
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        draft = drafts.setdefault(digest, FetchedDraft(folder, len(drafts)))
        arms.append(Arm(f"{folder.parent.name}, look {folder.name}", DRAFT, draft))
    await servers.learn_checksums(arms)
    found = list[float]()
    for arm in arms:
        await servers.prepare(arm, CONCURRENCY)
        found.append(accept_length(await servers.run(arm, prompts, CONCURRENCY)))
        print(f"{arm.name}: {found[-1]:.2f}", flush=True)
    return found


async def serve(folders: Sequence[Path], prompts: Sequence[Sequence[int]], work: Path) -> list[float]:
    """:func:`ask` of a server that is started for it with the first draft."""
    spec = EngineSpec(str(ensure_model()), "cpu", DEFAULT_KV_TOKENS, DType.BFLOAT16.value)
    async with Servers(
        EngineSet(spec, work), {DRAFT: Eagle3(folders[0], 0, DRAFT_SHAPES[CHAINS])}, (), MAX_NEW_TOKENS
    ) as servers:
        return await ask(servers, folders, prompts)


def beside(runs: Sequence[Run], looks: Sequence[int], lengths: Sequence[float]) -> Iterator[Served]:
    """``lengths`` as served, run by run and look by look, beside what was simulated."""
    for n, done in enumerate(runs):
        own = [done.looks[i] for i in looks]
        tokens = tuple(float(look.tokens) for look in own)
        simulated = Curve(tokens, tuple(look.accept_length for look in own))
        yield Served(done.configuration, simulated, Curve(tokens, tuple(lengths[n * len(looks) :][: len(looks)])))


def table(rows: Sequence[Served]) -> str:
    """A cell is the acceptance length served, and simulated in brackets."""
    head = ["configuration: served (simulated)", *map(thousands, rows[0].served.tokens)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        pairs = zip(row.served.lengths, row.simulated.lengths, strict=True)
        lines.append("| " + " | ".join([row.name, *(f"{real:.2f} ({own:.2f})" for real, own in pairs)]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traffic", choices=sorted(MESSAGES_BY_DOMAIN), default="json")
    parser.add_argument("--match", type=Match, choices=list(Match), default=Match.TRAFFIC, help="what is held equal")
    parser.add_argument("--requests", type=int, default=160, help="recorded requests, held-out ones included")
    parser.add_argument("--tokens", type=int, default=None, help="answer tokens of traffic per run (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = [PUBLISHED, *(name for name, how in CONFIGURATIONS.items() if how.is_default)]
    servable = [name for name, how in CONFIGURATIONS.items() if how.steps == DRAFT_SHAPES[CHAINS].steps]
    parser.add_argument("--only", nargs="+", choices=servable, default=chosen)
    parser.add_argument("--looks", type=int, nargs="+", choices=range(LOOKS + 1), default=[0, 2, 4, 6, 8])
    parser.add_argument("--out", type=Path, default=None, help="directory for served.md and served.svg")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # A plain SIGTERM would end this process without ending the server.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    traffic = recorded(options.traffic, options.requests, dict.fromkeys(CONFIGURATIONS[n].shape for n in options.only))
    asked = [t for t in next(iter(traffic.traces.values())) if t.held_out]
    with tempfile.TemporaryDirectory(prefix="served-bench-") as work:
        runs = [
            run(traffic, n, CONFIGURATIONS[n], options.match, options.seed, options.tokens, Path(work) / n)
            for n in options.only
        ]
        folders = [Path(work) / n / str(look) for n in options.only for look in options.looks]
        lengths = asyncio.run(serve(folders, [t.tokens[: t.prompt_length].tolist() for t in asked], Path(work)))
    rows = list(beside(runs, options.looks, lengths))
    caption = f"{options.traffic}, matched {options.match}, seed {options.seed}, {len(asked)} held-out requests"
    print(f"\n{caption}\n\n{table(rows)}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "served.md").write_text(f"{caption}\n\n{table(rows)}\n")
        panels = [
            Panel(f"{options.traffic}, simulated", {row.name: [row.simulated] for row in rows}),
            Panel(f"{options.traffic}, served by SGLang", {row.name: [row.served] for row in rows}),
        ]
        (options.out / "served.svg").write_text(draw([panels]))


if __name__ == "__main__":
    main()

"""The curve again in a real engine: the draft of each look is served by SGLang to the held-out requests.

Simulation decides between recipes because it is cheap and exact on recorded answers; this says whether serving agrees.
One server takes all drafts in turn, swapped as in production. Invariant: the prefix cache is emptied at every swap,
because the same prompts are asked again and the keys of another draft would cost acceptance.

    python -m tests.bench.learning.served [--traffic json] [--match traffic] [--only fifo "discard 0.1"] [--seed 0]
                                          [--looks 0 2 4 6 8] [--out DIR]
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

import aiohttp
import torch
from tests.assets.drafted import TRAFFIC
from tests.assets.model import ensure_model
from tests.assets.server import Server, sglang_server
from tests.assets.traces import MAX_NEW_TOKENS
from tests.bench.learning.configurations import CONFIGURATIONS
from tests.bench.learning.curve import Curve, thousands
from tests.bench.learning.matching import Match
from tests.bench.learning.plot import Panel, draw
from tests.bench.learning.recorded import recorded
from tests.bench.learning.replay import LOOKS, Run, run
from tests.bench.swapping import SERVER_ARGUMENTS

from aurora_runtime.engine.admin import EngineAdmin
from aurora_runtime.engine.weights import WEIGHTS
from aurora_runtime.errors import EngineFault
from aurora_runtime.validation.load import BatchResult, Client

CONCURRENCY = 2
REQUEST_TIMEOUT_S = 300.0


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


async def ask(server: Server, drafts: Sequence[Path], prompts: Sequence[Sequence[int]]) -> list[float]:
    """The acceptance length with each draft in turn. Raises :class:`EngineFault` when one was seen not to be loaded."""
    found, held = [], dict[str, str]()  # what the engine says that it holds, by the digest of the file
    async with aiohttp.ClientSession() as session:
        engine, client = EngineAdmin(session, server.url), Client(session, server.url, REQUEST_TIMEOUT_S)
        for version, draft in enumerate(drafts):
            await engine.swap(draft / WEIGHTS, version)
            await engine.flush()
            held[hashlib.sha256((draft / WEIGHTS).read_bytes()).hexdigest()] = await engine.checksum()
            if len({*held.values()}) != len(held):
                raise EngineFault(f"the engine does not hold {draft} after its swap")
            found.append(accept_length(await client.batch(prompts, CONCURRENCY, MAX_NEW_TOKENS)))
            print(f"{draft.parent.name}, look {draft.name}: {found[-1]:.2f}", flush=True)
    return found


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
    parser.add_argument("--traffic", choices=sorted(TRAFFIC), default="json")
    parser.add_argument("--match", type=Match, choices=list(Match), default=Match.TRAFFIC, help="what is held equal")
    parser.add_argument("--requests", type=int, default=160, help="recorded requests, held-out ones included")
    parser.add_argument("--tokens", type=int, default=None, help="answer tokens of traffic per run (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(CONFIGURATIONS), default=["fifo", "discard 0.1"])
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
        drafts = [Path(work) / n / str(look) for n in options.only for look in options.looks]
        with sglang_server(ensure_model(), drafts[0], SERVER_ARGUMENTS, log=Path(work) / "server.log") as server:
            lengths = asyncio.run(ask(server, drafts, [t.tokens[: t.prompt_length].tolist() for t in asked]))
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

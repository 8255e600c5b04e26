"""Whether speculation and swaps leave greedy answers alone: promise 2 ("Unbroken"), counted.

The same chat prompts are answered by a server without speculation (off), then by one with EAGLE-3: with the untrained
draft (on), while that draft is swapped for a trained one and back without end (across swaps), and with the trained one
(after). Every answer is compared, token by token, with the one that "off" gave first: identical; parted at a near tie,
as bf16 logits cannot be told apart across batch shapes; or different. In bf16 the tie is judged by the target in fp32;
in float32 nothing but identical will do. Two yardsticks belong to it: "off" in a batch is compared too (what batching
alone does), and bf16's rounding is measured by transformers (how far it moves the gap of the two best tokens).

The prefix cache is never flushed, because a swap does not flush it: where a prompt was cached under the other draft,
its stale draft keys cost acceptance and must not cost correctness.

    python -m tests.bench.equality [--prompts 64] [--tokens 64] [--concurrency 1 4] [--dtype bfloat16] [--lock FILE]

Exits non-zero when an answer is different or a request or a swap failed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from tests.assets.model import ensure_model
from tests.assets.sglang_server import Server, sglang_server
from tests.assets.target_scores import Margin, TargetScores, rounding
from tests.assets.trained_draft import write_untrained_and_trained
from tests.bench.engine import held
from tests.bench.swapping import SERVER_ARGUMENTS, UNTRAINED, SwappingEngine
from tests.traffic.prompts import Domain, prompts
from tests.traffic.report import percentiles

from aurora_api.v1alpha1.target import DType
from aurora_runtime.engine.sglang_client import SGLangClient, session
from aurora_runtime.validation.answer_equality import NEAR_TIE, first_difference
from aurora_runtime.validation.load_client import Answer, BatchResult, Client

SEED = 2
REQUEST_TIMEOUT_S = 300.0
ROUNDING_PROMPTS = 64
"""Answers on which bf16's own rounding is measured: two passes of the target over each."""


class Phase(StrEnum):
    OFF = "off"
    ON = "on, untrained draft"
    ACROSS = "across swaps"
    AFTER = "after, trained draft"


class Verdict(StrEnum):
    IDENTICAL = "identical"
    NEAR_TIE = "near tie"
    DIFFERENT = "different"


@dataclass(frozen=True)
class Pass:
    """All prompts answered once."""

    phase: Phase
    concurrency: int
    result: BatchResult


@dataclass(frozen=True)
class Judged:
    """One answer against the one without speculation: where they part and how far apart the two tokens are."""

    verdict: Verdict
    at: int | None = None
    margin: Margin | None = None


Weigh = Callable[[Sequence[int], int, int], Margin]


def judge(prompt: Sequence[int], off: Sequence[int], answer: Sequence[int], dtype: DType, weigh: Weigh) -> Judged:
    """A near tie is one in half precision only, between tokens that lie within the bound of the best one."""
    at = first_difference(off, answer)
    if at is None:
        return Judged(Verdict.IDENTICAL)
    if at >= min(len(off), len(answer)):  # one is the other's beginning: there is no second token to weigh
        return Judged(Verdict.DIFFERENT, at)
    margin = weigh((*prompt, *off[:at]), off[at], answer[at])
    tie = dtype is not DType.FLOAT32 and margin.gap <= NEAR_TIE
    return Judged(Verdict.NEAR_TIE if tie else Verdict.DIFFERENT, at, margin)


def chat_prompts(model: Path, count: int) -> list[list[int]]:
    """Token ids of ``count`` distinct chat requests, JSON extraction and docstrings in turn."""
    from transformers import AutoTokenizer

    streams = [prompts(domain, SEED) for domain in (Domain.EXTRACTION, Domain.DOCSTRINGS)]
    texts = list(itertools.islice((text for pair in zip(*streams, strict=True) for text in pair), count))
    assert len(set(texts)) == count, "the prompts are not distinct"
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [
        tokenizer(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        )["input_ids"]
        for text in texts
    ]


async def answers(
    server: Server,
    phase: Phase,
    asked: Sequence[Sequence[int]],
    options: argparse.Namespace,
    swapping: SwappingEngine | None = None,
) -> list[Pass]:
    """Ask every prompt once at each concurrency, swapping meanwhile where there is something to swap."""
    passes = []
    async with session() as http:
        client = Client(http, server.url, REQUEST_TIMEOUT_S)
        for concurrency in options.concurrency:
            began = time.monotonic()
            batch = asyncio.ensure_future(client.batch(asked, concurrency, options.tokens))
            if swapping is not None:
                await swapping.swap_until(batch, concurrency)
            passes.append(Pass(phase, concurrency, await batch))
            print(f"{phase}, concurrency {concurrency}: {time.monotonic() - began:.0f} s", flush=True)
    return passes


async def speculating(
    server: Server, drafts: Sequence[Path], asked: Sequence[Sequence[int]], options: argparse.Namespace
) -> tuple[list[Pass], SwappingEngine]:
    """On, across swaps and, unless it is left out, after, on one server that starts with the untrained draft."""
    async with session() as http:
        swapping = SwappingEngine(SGLangClient(http, server.url), drafts)
        passes = await answers(server, Phase.ON, asked, options)
        await swapping.learn_checksums()
        passes += await answers(server, Phase.ACROSS, asked, options, swapping)
        if not options.no_after:
            passes += await answers(server, Phase.AFTER, asked, options)
        await swapping.check_trained()
    return passes, swapping


def measure(
    model: Path, work: Path, asked: Sequence[Sequence[int]], options: argparse.Namespace
) -> tuple[list[Pass], SwappingEngine]:
    """All passes; one server at a time, so that each has the machine to itself."""
    began = time.monotonic()
    drafts = write_untrained_and_trained(model, work)
    print(f"trained for {time.monotonic() - began:.0f} s", flush=True)
    dtype = ("--dtype", options.dtype.value)
    with sglang_server(model, extra_args=dtype, log=work / "off.log") as server:
        passes = asyncio.run(answers(server, Phase.OFF, asked, options))
    with sglang_server(model, drafts[UNTRAINED], (*dtype, *SERVER_ARGUMENTS), log=work / "eagle.log") as server:
        more, swapping = asyncio.run(speculating(server, drafts, asked, options))
    return passes + more, swapping


def compared(
    passes: Sequence[Pass], asked: Sequence[Sequence[int]], dtype: DType, weigh: Weigh
) -> Iterator[tuple[Pass, dict[int, Judged]]]:
    """Every pass with its verdicts by prompt; a prompt that failed, here or when asked first, has none."""
    reference: Sequence[Answer | None] = passes[0].result.answers
    for done in passes:
        judged = {}
        for number, (off, answer) in enumerate(zip(reference, done.result.answers, strict=True)):
            if off is not None and answer is not None:
                judged[number] = judge(asked[number], off.tokens, answer.tokens, dtype, weigh)
        yield done, judged


def table(rows: Sequence[tuple[Pass, dict[int, Judged]]]) -> str:
    """Markdown: one row per pass."""
    lines = [
        "| | concurrency | prompts | identical | near ties | different | largest fp32 margin "
        "| acceptance length | failed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for done, judged in rows:
        verdicts = [one.verdict for one in judged.values()]
        margins = [one.margin for one in judged.values() if one.margin is not None]
        rounds = done.result.verify_rounds
        cells = [
            done.phase,
            done.concurrency,
            len(done.result.answers),
            *(verdicts.count(verdict) for verdict in Verdict),
            f"{max(margin.gap for margin in margins):.3f}" if margins else "-",
            f"{done.result.tokens / rounds:.2f}" if rounds else "-",
            done.result.failures,
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def pauses_table(pauses: dict[int, list[float]]) -> str:
    """Markdown: swaps and their pauses per concurrency."""
    lines = ["| swaps at concurrency | done | pause p50, ms | p99 | max |", "|---|---|---|---|---|"]
    for concurrency, seconds in pauses.items():
        found = percentiles([1000 * second for second in seconds])
        if found is not None:
            cells = f"{found.p50:.0f} | {found.p99:.0f} | {found.largest:.0f}"
            lines.append(f"| {concurrency} | {len(seconds)} | {cells} |")
    return "\n".join(lines)


def differences(rows: Sequence[tuple[Pass, dict[int, Judged]]]) -> list[str]:
    """A line for each answer that is different."""
    lines = []
    for done, judged in rows:
        for number, one in judged.items():
            if one.verdict is not Verdict.DIFFERENT:
                continue
            where = f"{done.phase}, concurrency {done.concurrency}, prompt {number}, token {one.at}"
            if one.margin is None:
                lines.append(f"different: {where}: one answer is the other's beginning")
            else:
                far = (
                    f"off's token leads by {one.margin.lead:.3f}, and the weaker is {one.margin.gap:.3f} below the best"
                )
                lines.append(f"different: {where}: in fp32 {far}")
    return lines


def rounding_line(exact: TargetScores, model: Path, asked: Sequence[Sequence[int]], off: BatchResult) -> str:
    """How far bf16 arithmetic by itself moves the gap of the two best tokens along the answers without speculation."""
    coarse = TargetScores(model, torch.bfloat16)
    moved = [
        by
        for prompt, answer in zip(asked, off.answers, strict=False)
        if answer is not None
        for by in rounding(exact, coarse, prompt, answer.tokens)
    ]
    found = percentiles(moved)
    if found is None:
        return "no answers to measure rounding on"
    return (
        f"bf16 by itself moves the gap of the two best tokens by p50 {found.p50:.3f}, p99 {found.p99:.3f}, "
        f"at most {found.largest:.3f} ({len(moved)} tokens)"
    )


def machine() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].split(":", 1)[1].strip() if models else platform.machine()
    return f"{os.cpu_count()} x {name}"


def commit() -> str:
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4], help="the first gives the reference")
    parser.add_argument("--dtype", type=DType, choices=(DType.BFLOAT16, DType.FLOAT32), default=DType.BFLOAT16)
    parser.add_argument("--no-after", action="store_true", help="leave out the last pass, which no swap disturbs")
    parser.add_argument("--lock", type=Path, default=None, help="hold this lock file while training and measuring")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # A plain SIGTERM would end this process without ending the servers.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    model, at = ensure_model(), commit()
    asked = chat_prompts(model, options.prompts)
    with tempfile.TemporaryDirectory(prefix="equality-bench-") as work, held(options.lock):
        before = os.getloadavg()[0]
        passes, swapping = measure(model, Path(work), asked, options)
        after = os.getloadavg()[0]
        exact = TargetScores(model, torch.float32)
        rows = list(compared(passes, asked, options.dtype, exact.margin))
        half = options.dtype is not DType.FLOAT32
        noise = rounding_line(exact, model, asked[:ROUNDING_PROMPTS], passes[0].result) if half else ""
    print(f"\n{machine()}; {options.dtype}; commit {at}; load before {before:.1f}, after {after:.1f}\n")
    different = differences(rows)
    problems = "\n".join([*different, *(f"swap failed: {failure}" for failure in swapping.failures)])
    print("\n\n".join(part for part in (table(rows), pauses_table(swapping.pauses), noise, problems) if part))
    failed = sum(done.result.failures for done in passes)
    raise SystemExit(1 if different or failed or swapping.failures else 0)


if __name__ == "__main__":
    main()

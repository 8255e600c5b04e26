"""Do greedy answers stay the same with speculation and across swaps of the draft? (Promise 2, "Unbroken".)

The same chat prompts are answered in four phases:

- off: by a server without speculation;
- on, untrained draft: by a server with EAGLE-3 and its untrained draft (with --controller, and with lookup);
- across swaps: by the speculating server while the untrained and a trained draft are swapped back and forth;
- after, trained draft: by the speculating server with the trained draft.

Every answer is compared, token by token, with the first answer without speculation. An answer is identical, diverges at
a near tie, or is different. Near ties exist because bf16 rounding depends on the batch shape. Two nearly equal logits
may therefore change their order. For bf16 servers, the target in fp32 decides whether two tokens are a near tie. With
--dtype float32 only identical answers pass.

Two figures help to read the verdicts. "off" at the other concurrencies shows how many answers batching alone changes.
Transformers measures how far bf16 rounding alone moves the gap between the two best tokens.

The prefix cache is never flushed, because a swap does not flush it in service either. A prompt may have been cached
under the other draft. Such stale draft keys may cost acceptance, but never correctness.

Exits with 1 when an answer is different, or when a request or a swap failed.

Takes about ten minutes on two quiet cores (estimated), training included. Needs a CPU only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from tests.assets.model import ensure_model
from tests.assets.sglang_server import Server, sglang_server
from tests.assets.target_scores import Margin, TargetScores, rounding_effects
from tests.assets.trained_draft import write_untrained_and_trained
from tests.bench.bench_command import bench_parser, measuring
from tests.bench.markdown import markdown_table
from tests.bench.swap_loop import SERVER_ARGUMENTS, UNTRAINED, SwapLoop
from tests.traffic.prompts import Domain, prompts

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope, Shape
from aurora_api.v1alpha1.target import DType
from aurora_runtime.engine.sglang_client import SGLangClient, open_session
from aurora_runtime.engine.speculation_flags import SPECULATION_PLUGIN, Eagle3
from aurora_runtime.engine.speculation_settings import controller_of
from aurora_runtime.validation.measured_engine import Answer, BatchResult, LoadClient
from aurora_runtime.validation.rounds import NEAR_TIE_LOGIT_GAP, first_difference

PROMPT_SEED = 2
ROUNDING_PROMPTS = 64
"""Answers on which bf16's own rounding is measured. Each takes two passes of the target."""


@dataclass(frozen=True)
class Percentiles:
    """By the nearest rank."""

    p50: float
    p99: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        """Of one or more values."""
        ordered = sorted(values)
        return cls(ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], ordered[-1])


class Phase(StrEnum):
    OFF = "off"
    ON = "on, untrained draft"
    ACROSS_SWAPS = "across swaps"
    AFTER = "after, trained draft"


class Verdict(StrEnum):
    IDENTICAL = "identical"
    NEAR_TIE = "near tie"
    DIFFERENT = "different"


@dataclass(frozen=True)
class PromptPass:
    """All prompts, answered once."""

    phase: Phase
    concurrency: int
    result: BatchResult


@dataclass(frozen=True)
class Comparison:
    """One answer compared with the answer without speculation.

    Attributes:
        token_index: the index of the first token that differs.
        margin: how far apart the two differing tokens lie, by the target in fp32.
    """

    verdict: Verdict
    token_index: int | None = None
    margin: Margin | None = None


MarginOf = Callable[[Sequence[int], int, int], Margin]
"""The margin between two next tokens after a prefix."""


def compare(
    prompt: Sequence[int], off: Sequence[int], answer: Sequence[int], dtype: DType, margin_of: MarginOf
) -> Comparison:
    """Compare ``answer`` with ``off``, the answer without speculation.

    A near tie exists in half precision only, and only between tokens whose logits lie close to the best logit.
    """
    at = first_difference(off, answer)
    if at is None:
        return Comparison(Verdict.IDENTICAL)
    if at >= min(len(off), len(answer)):  # one answer is the beginning of the other: there is no second token
        return Comparison(Verdict.DIFFERENT, at)
    margin = margin_of((*prompt, *off[:at]), off[at], answer[at])
    is_tie = dtype is not DType.FLOAT32 and margin.gap <= NEAR_TIE_LOGIT_GAP
    return Comparison(Verdict.NEAR_TIE if is_tie else Verdict.DIFFERENT, at, margin)


def chat_prompts(model: Path, count: int) -> list[list[int]]:
    """Token ids of ``count`` distinct chat requests: JSON extraction and docstrings in turn."""
    from transformers import AutoTokenizer

    streams = [prompts(domain, PROMPT_SEED) for domain in (Domain.EXTRACTION, Domain.DOCSTRINGS)]
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


async def answer_all(
    server: Server,
    phase: Phase,
    token_prompts: Sequence[Sequence[int]],
    options: argparse.Namespace,
    swap_loop: SwapLoop | None = None,
) -> list[PromptPass]:
    """Have the server answer every prompt once at each concurrency, while ``swap_loop`` swaps its draft."""
    passes = []
    async with open_session() as http:
        client = LoadClient(http, server.url)
        for concurrency in options.concurrency:
            began = time.monotonic()
            batch = asyncio.ensure_future(client.batch(token_prompts, concurrency, options.tokens))
            if swap_loop is not None:
                await swap_loop.swap_until(batch, concurrency)
            passes.append(PromptPass(phase, concurrency, await batch))
            print(f"{phase}, concurrency {concurrency}: {time.monotonic() - began:.0f} s", flush=True)
    return passes


async def answer_with_speculation(
    server: Server, drafts: Sequence[Path], token_prompts: Sequence[Sequence[int]], options: argparse.Namespace
) -> tuple[list[PromptPass], SwapLoop]:
    """Run the three phases with speculation, on one server that starts with the untrained draft."""
    async with open_session() as http:
        swap_loop = SwapLoop(SGLangClient(http, server.url), drafts)
        passes = await answer_all(server, Phase.ON, token_prompts, options)
        await swap_loop.learn_checksums()
        passes += await answer_all(server, Phase.ACROSS_SWAPS, token_prompts, options, swap_loop)
        if not options.no_after:
            passes += await answer_all(server, Phase.AFTER, token_prompts, options)
        await swap_loop.check_trained()
    return passes, swap_loop


def measure(
    model: Path, folder: Path, token_prompts: Sequence[Sequence[int]], options: argparse.Namespace
) -> tuple[list[PromptPass], SwapLoop]:
    """Run all phases. One server runs at a time, so that each has the machine to itself."""
    began = time.monotonic()
    drafts = write_untrained_and_trained(model, folder)
    print(f"trained for {time.monotonic() - began:.0f} s", flush=True)
    dtype = ("--dtype", options.dtype.value)
    with sglang_server(model, extra_args=dtype, log=folder / "off.log") as server:
        off = asyncio.run(answer_all(server, Phase.OFF, token_prompts, options))
    with speculating_server(model, drafts[UNTRAINED], dtype, folder, controller=options.controller) as server:
        speculative, swap_loop = asyncio.run(answer_with_speculation(server, drafts, token_prompts, options))
    return off + speculative, swap_loop


def speculating_server(
    model: Path, draft: Path, dtype: Sequence[str], folder: Path, *, controller: bool
) -> contextlib.AbstractContextManager[Server]:
    """A server with EAGLE-3. With ``controller`` it chooses each round, and looks up in the answers of all requests."""
    log = folder / "eagle.log"
    if not controller:
        return sglang_server(model, draft, (*dtype, *SERVER_ARGUMENTS), log=log)
    spec = DraftSpec(shape=Shape.ADAPTIVE, lookup=LookupScope.SPECULATOR)
    rounds = controller_of(spec, folder, "bench")
    return sglang_server(
        model,
        extra_args=(*dtype, *Eagle3(draft, UNTRAINED, spec, rounds).arguments()),
        env=rounds.environment(),
        plugins=f"aurora_cpu,aurora_vocabulary,{SPECULATION_PLUGIN}",
        log=log,
    )


def compare_passes(
    passes: Sequence[PromptPass], token_prompts: Sequence[Sequence[int]], dtype: DType, margin_of: MarginOf
) -> Iterator[tuple[PromptPass, dict[int, Comparison]]]:
    """Every pass with its comparisons, by prompt. A prompt that failed, here or in the first pass, has none."""
    reference: Sequence[Answer | None] = passes[0].result.answers
    for each in passes:
        comparisons = {}
        for number, (off, answer) in enumerate(zip(reference, each.result.answers, strict=True)):
            if off is not None and answer is not None:
                comparisons[number] = compare(token_prompts[number], off.tokens, answer.tokens, dtype, margin_of)
        yield each, comparisons


def verdict_table(rows: Sequence[tuple[PromptPass, dict[int, Comparison]]]) -> str:
    """One row per pass."""
    head = ["phase", "concurrency", "prompts", "identical", "near ties", "different"]
    head += ["largest fp32 margin", "acceptance length", "failed requests"]
    cells = []
    for each, comparisons in rows:
        verdicts = [one.verdict for one in comparisons.values()]
        margins = [one.margin for one in comparisons.values() if one.margin is not None]
        rounds = each.result.verify_rounds
        cells.append(
            [
                each.phase,
                each.concurrency,
                len(each.result.answers),
                *(verdicts.count(verdict) for verdict in Verdict),
                f"{max(margin.gap for margin in margins):.3f}" if margins else "-",
                f"{each.result.tokens / rounds:.2f}" if rounds else "-",
                each.result.failures,
            ]
        )
    return markdown_table(head, cells)


def pause_table(pauses: dict[int, list[float]]) -> str:
    """The swaps and their pauses, a row per concurrency."""
    rows = []
    for concurrency, seconds in pauses.items():
        if seconds:
            milliseconds = Percentiles.of([1000 * second for second in seconds])
            cells = [f"{value:.0f}" for value in (milliseconds.p50, milliseconds.p99, milliseconds.largest)]
            rows.append([str(concurrency), str(len(seconds)), *cells])
    return markdown_table(["concurrency", "swaps", "pause p50, ms", "p99, ms", "max, ms"], rows)


def describe_differences(rows: Sequence[tuple[PromptPass, dict[int, Comparison]]]) -> list[str]:
    """A line for each answer that is different."""
    lines = []
    for each, comparisons in rows:
        for number, one in comparisons.items():
            if one.verdict is not Verdict.DIFFERENT:
                continue
            place = f"{each.phase}, concurrency {each.concurrency}, prompt {number}, token {one.token_index}"
            if one.margin is None:
                lines.append(f"different: {place}: one answer is the beginning of the other")
            else:
                lines.append(
                    f"different: {place}: in fp32 off's token leads by {one.margin.lead:.3f}, "
                    f"and the weaker token is {one.margin.gap:.3f} below the best"
                )
    return lines


def describe_rounding(
    exact: TargetScores, model: Path, token_prompts: Sequence[Sequence[int]], off: BatchResult
) -> str:
    """A line on how far bf16 rounding alone moves the gap of the two best tokens along the answers of ``off``."""
    coarse = TargetScores(model, torch.bfloat16)
    shifts = [
        shift
        for prompt, answer in zip(token_prompts, off.answers, strict=False)
        if answer is not None
        for shift in rounding_effects(exact, coarse, prompt, answer.tokens)
    ]
    if not shifts:
        return "there are no answers to measure bf16 rounding on"
    summary = Percentiles.of(shifts)
    return (
        f"bf16 alone moves the gap of the two best tokens by p50 {summary.p50:.3f}, p99 {summary.p99:.3f}, "
        f"at most {summary.largest:.3f} ({len(shifts)} tokens)"
    )


def _options() -> argparse.Namespace:
    parser = bench_parser("tests.bench.equality", __doc__)
    parser.add_argument("--prompts", type=int, default=64, help="distinct chat requests")
    parser.add_argument("--tokens", type=int, default=64, help="largest number of tokens of an answer")
    parser.add_argument(
        "--concurrency",
        type=int,
        nargs="+",
        default=[1, 4],
        help="requests in flight; each phase runs at every one, and the first gives the reference answers",
    )
    parser.add_argument(
        "--dtype",
        type=DType,
        choices=(DType.BFLOAT16, DType.FLOAT32),
        default=DType.BFLOAT16,
        help="precision of the servers; float32 allows no near ties",
    )
    parser.add_argument(
        "--controller", action="store_true", help="choose each round, by lookup, the draft or nothing, as pods do"
    )
    parser.add_argument("--no-after", action="store_true", help="leave out the last phase, which has no swaps")
    return parser.parse_args()


def main() -> None:
    options = _options()
    model = ensure_model()
    token_prompts = chat_prompts(model, options.prompts)
    with measuring("tests.bench.equality") as measurement:
        passes, swap_loop = measure(model, measurement.folder, token_prompts, options)
        exact = TargetScores(model, torch.float32)
        rows = list(compare_passes(passes, token_prompts, options.dtype, exact.margin))
        rounding_line = ""
        if options.dtype is not DType.FLOAT32:
            rounding_line = describe_rounding(exact, model, token_prompts[:ROUNDING_PROMPTS], passes[0].result)
    print(f"\n{measurement.origin}; {options.dtype}\n")
    different = describe_differences(rows)
    problems = "\n".join([*different, *(f"swap failed: {failure}" for failure in swap_loop.failures)])
    sections = (verdict_table(rows), pause_table(swap_loop.pauses), rounding_line, problems)
    print("\n\n".join(section for section in sections if section))
    failed = sum(each.result.failures for each in passes)
    raise SystemExit(1 if different or failed or swap_loop.failures else 0)


if __name__ == "__main__":
    main()

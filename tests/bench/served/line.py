"""Who is measured and in which shapes of a round: the arms, the servers behind them, and one measurement of all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.assets.model import ensure_model
from tests.bench.served.live import Checkpoint
from tests.bench.served.measure import Measured, Plan, measure
from tests.bench.served.messages import reserved, traffic
from tests.bench.served.servers import DRAFT, OFF, Arm, Servers

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import DType
from aurora_api.v1alpha1.training import MAX_UNROLL_STEPS
from aurora_runtime.cpu.launch_settings import DEFAULT_KV_TOKENS
from aurora_runtime.engine.server_process import EngineSpec
from aurora_runtime.engine.speculation_flags import Eagle3, Ngram
from aurora_runtime.validation.server_set import EngineSet

LONGEST_ANSWER: Final = 64
SHAPES: Final = (DraftSpec(),)


@dataclass(frozen=True)
class Line:
    """Who is measured: the arms, and the servers behind them."""

    arms: tuple[Arm, ...]
    servers: dict[str, Eagle3 | Ngram | None]
    ngrams: tuple[str, ...]
    trained: tuple[str, ...]
    """The draft that learnt from the most, in each shape."""


def shape(text: str) -> DraftSpec:
    """``3`` is a chain of three steps, ``2x3x8`` a tree of two steps with three branches each, of which the eight most
    likely nodes are verified. Raises :class:`ValueError`."""
    first, *tree = map(int, text.split("x"))
    if not tree:
        return DraftSpec(steps=first, draft_tokens=first + 1)
    top_k, draft_tokens = tree
    return DraftSpec(steps=first, branching=top_k, draft_tokens=draft_tokens)


def said(one: DraftSpec) -> str:
    """A shape in words."""
    tree = f", {one.branching} branches, {one.tokens_per_round} tokens" if one.branching > 1 else ""
    return f"{one.steps} steps{tree}"


def line_of(drafts: Sequence[Checkpoint], widths: Sequence[int], shapes: Sequence[DraftSpec] = SHAPES) -> Line:
    """Off, NGRAM and the drafts, in this order in the first round; the EAGLE-3 server starts with the untrained one."""
    arms, servers = [Arm("off", OFF)], dict[str, Eagle3 | Ngram | None]({OFF: None})
    for width in widths:
        arms.append(Arm(f"NGRAM, {width} tokens", f"ngram-{width}"))
        servers[arms[-1].server] = Ngram(width)
    ngrams = tuple(arm.name for arm in arms[1:])
    servers[DRAFT] = Eagle3(drafts[0].draft.folder, drafts[0].draft.version, shapes[0])
    arms += [Arm(one.name, DRAFT, one.draft) for one in drafts]
    last = drafts[-1]
    for other in shapes[1:]:
        arms.append(Arm(f"{last.name}, {said(other)}", f"{DRAFT}-{len(servers)}", last.draft))
        servers[arms[-1].server] = Eagle3(last.draft.folder, last.draft.version, other)
    trained = tuple(arm.name for arm in arms if arm.draft == last.draft)
    return Line(tuple(arms), servers, ngrams, trained)


def chat(tokenizer: Any, messages: Sequence[str]) -> list[str]:
    """Each message as a chat request's text."""
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": m}], tokenize=False, add_generation_prompt=True)
        for m in messages
    ]


async def serve(domain: str, line: Line, plan: Plan, seen: Sequence[str], work: Path) -> Measured:
    """Start the servers, have NGRAM answer the messages that the drafts have ``seen``, measure, stop the servers."""
    from transformers import AutoTokenizer

    model = ensure_model()
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts, asked = (
        [tokenizer(text)["input_ids"] for text in chat(tokenizer, messages)]
        for messages in (reserved(domain)[: plan.prompts_needed], seen)
    )
    warm = chat(tokenizer, traffic(domain)[: max(plan.concurrencies)])
    spec = EngineSpec(str(model), "cpu", DEFAULT_KV_TOKENS, DType.BFLOAT16.value)
    async with Servers(EngineSet(spec, work), line.servers, warm, LONGEST_ANSWER) as servers:
        await servers.learn_checksums(line.arms)
        if line.ngrams:
            began = time.monotonic()
            await servers.feed(asked)
            print(f"{domain}: NGRAM answered {len(seen)} requests in {time.monotonic() - began:.0f} s", flush=True)
        return await measure(servers, plan, prompts, tokenizer.decode)


def unrolled(shapes: Sequence[DraftSpec]) -> int:
    """How deep training unrolls a draft that is measured in all ``shapes``: as deep as the deepest."""
    return min(max(one.steps for one in shapes), MAX_UNROLL_STEPS)

"""How many rounds is a pod slower than off after its traffic turned, or after a worse draft got in?

A pod with the speculation controller answers JSON requests with a draft that learned them. Then one of two things
happens. With *shift* the requests turn to prose, of which the draft knows nothing. With *worse draft* the pod swaps to
a draft that proposes wrong tokens only. From then on the pod and a server without speculation answer the same new
prompts right after each other, in alternating order. Each event happens several times. In between the pod settles on
JSON.

Prints the pod's speed against off, by verify rounds since the event. Exits with 1 when a request failed.

Takes about 15 minutes on two quiet cores (estimated). Needs a CPU only.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from tests.assets.cache import cache_root
from tests.assets.model import ensure_model
from tests.assets.trained_draft import write_specialist
from tests.bench.bench_command import add_lock_option, bench_parser, measuring, new_file
from tests.bench.markdown import markdown_table
from tests.bench.served.lineup import chat_texts
from tests.bench.served.messages import traffic
from tests.bench.served.servers import OFF, Arm, Servers
from tests.bench.served.speed_report import describe_ratio
from tests.traffic.prompts import Domain

from aurora_api.v1alpha1.draft import DraftSpec, Shape
from aurora_api.v1alpha1.target import DType
from aurora_protocol import evidence_records
from aurora_protocol.evidence_records import RatioEstimate
from aurora_protocol.gate import paired_ratio
from aurora_runtime.cpu.launch_settings import DEFAULT_KV_TOKENS
from aurora_runtime.engine.draft_file_check import WEIGHTS
from aurora_runtime.engine.draft_swap import load_in_pause
from aurora_runtime.engine.server_process import EngineSpec
from aurora_runtime.engine.speculation_flags import Eagle3
from aurora_runtime.engine.speculation_settings import controller_of
from aurora_runtime.errors import MeasurementError
from aurora_runtime.validation.draft_fetch import FetchedDraft
from aurora_runtime.validation.engines.engine_set import EngineSet

CONTROLLED: Final = "controlled"
EVENTS: Final = {"shift": "prose", "worse draft": "json"}
"""The domain of the requests after each event. Before it they are JSON."""
WINDOWS: Final = (0, 50, 100, 200, 300)
"""Rounds since the event, at which a window ends and the next one begins."""
ANSWER_TOKENS: Final = 24
"""Short answers, so that a batch is in one window."""
SETTLING_TOKENS: Final = 64


@dataclass(frozen=True)
class PairedBatch:
    """The same prompts answered by both servers.

    Attributes:
        episode: number of the event that the batch follows.
        rounds_before: the pod's verify rounds between the event and the batch.
    """

    event: str
    episode: int
    rounds_before: float
    requests: int
    pod_tokens: int
    pod_seconds: float
    off_tokens: int
    off_seconds: float


def windows() -> list[tuple[int, int]]:
    """The windows, each from its first round to the first of the next."""
    return list(itertools.pairwise(WINDOWS))


def window_ratio(
    batches: Sequence[PairedBatch], event: str, window: tuple[int, int], concurrency: int
) -> RatioEstimate | None:
    """The pod's speed over off's in a window after ``event``, paired by episode. None without a batch."""
    first, end = window
    chosen = [each for each in batches if each.event == event and first <= each.rounds_before < end]
    return paired_ratio(
        [sample for each in chosen for sample in _samples(each, concurrency)],
        evidence_records.Arm.CANDIDATE,
        evidence_records.Arm.OFF,
        concurrency,
    )


def _samples(batch: PairedBatch, concurrency: int) -> Iterator[evidence_records.Sample]:
    sides = (
        (evidence_records.Arm.CANDIDATE, batch.pod_tokens, batch.pod_seconds),
        (evidence_records.Arm.OFF, batch.off_tokens, batch.off_seconds),
    )
    for arm, tokens, seconds in sides:
        yield evidence_records.Sample(
            arm=arm,
            concurrency=concurrency,
            round=batch.episode,
            requests=batch.requests,
            tokens=tokens,
            seconds=seconds,
        )


def report(batches: Sequence[PairedBatch], concurrency: int) -> str:
    """One row for each event and window."""
    rows = [
        [event, f"{first} to {end}", describe_ratio(window_ratio(batches, event, (first, end), concurrency))]
        for event in EVENTS
        for first, end in windows()
    ]
    return markdown_table(["event", "rounds since", "pod / off [95 %]"], rows)


def write_wrong_draft(good: Path, folder: Path) -> Path:
    """Write a draft like ``good`` whose head prefers what ``good`` rejects, and return ``folder``."""
    shutil.copytree(good, folder)
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight"] = torch.neg(tensors["lm_head.weight"])
    save_file(tensors, folder / WEIGHTS)
    return folder


class Recovery:
    """Runs the episodes on the two servers, and takes prompts that neither has answered."""

    def __init__(self, servers: Servers, tokenizer: Any, good: FetchedDraft, wrong: Path, concurrency: int) -> None:
        self._servers, self._good, self._wrong, self._concurrency = servers, good, wrong, concurrency
        self._prompts = {
            domain: iter([tokenizer(text)["input_ids"] for text in chat_texts(tokenizer, traffic(domain)[:3000])])
            for domain in ("json", "prose")
        }
        self._version = good.version
        self._off, self._pod = Arm("off", OFF), Arm("pod", CONTROLLED)

    async def settle(self, requests: int) -> None:
        """Answer JSON requests with the good draft."""
        await self._swap(self._good)
        self._servers.max_new_tokens = SETTLING_TOKENS
        await self._servers.run(self._pod, self._next("json", requests), self._concurrency)

    async def follow(self, event: str, episode: int) -> list[PairedBatch]:
        """Let ``event`` happen, and measure until the last window ends. Raises MeasurementError."""
        if event == "worse draft":
            self._version += 1  # as a promotion does, and so without the estimates of earlier drafts
            await self._swap(FetchedDraft(self._wrong, self._version))
        self._servers.max_new_tokens = ANSWER_TOKENS
        batches, rounds = list[PairedBatch](), 0.0
        while rounds < WINDOWS[-1]:
            prompts = self._next(EVENTS[event], self._concurrency)
            order = (self._pod, self._off) if len(batches) % 2 else (self._off, self._pod)
            results = {arm.name: await self._servers.run(arm, prompts, self._concurrency) for arm in order}
            pod, off = results["pod"], results["off"]
            if pod.failures + off.failures:
                raise MeasurementError(f"{pod.failures + off.failures} requests failed after the event {event}")
            batches.append(
                PairedBatch(event, episode, rounds, len(prompts), pod.tokens, pod.seconds, off.tokens, off.seconds)
            )
            rounds += (pod.verify_rounds or 0) / self._concurrency
        return batches

    def _next(self, domain: str, count: int) -> list[list[int]]:
        return [next(self._prompts[domain]) for _ in range(count)]

    async def _swap(self, draft: FetchedDraft) -> None:
        engine = self._servers.engines.admin(CONTROLLED)
        await load_in_pause(engine, draft)
        await engine.flush_prefix_cache()


async def run(options: argparse.Namespace, folder: Path) -> list[PairedBatch]:
    """All episodes of both events. ``folder`` is for the drafts and the servers' files."""
    from transformers import AutoTokenizer

    model = ensure_model()
    tokenizer = AutoTokenizer.from_pretrained(model)
    good = FetchedDraft(write_specialist(model, Domain.EXTRACTION, cache_root() / "drafts"), 1)
    wrong = write_wrong_draft(good.folder, folder / "wrong")
    adaptive = DraftSpec().model_copy(update={"shape": Shape.ADAPTIVE})
    (state := folder / "state").mkdir()
    speculation = {
        OFF: None,
        CONTROLLED: Eagle3(good.folder, good.version, adaptive, controller_of(adaptive, state, "bench")),
    }
    spec = EngineSpec(str(model), "cpu", DEFAULT_KV_TOKENS, DType.BFLOAT16.value)
    batches = list[PairedBatch]()
    async with Servers(EngineSet(spec, folder), speculation, [], ANSWER_TOKENS) as servers:
        recovery = Recovery(servers, tokenizer, good, wrong, options.concurrency)
        for episode in range(options.episodes):
            for event in EVENTS:
                await recovery.settle(options.settle)
                batches += await recovery.follow(event, episode)
            print(f"episode {episode + 1} of {options.episodes} ended", flush=True)
    return batches


def main() -> None:
    parser = bench_parser("tests.bench.served.recovery", __doc__)
    parser.add_argument("--episodes", type=int, default=8, help="how often each event happens")
    parser.add_argument("--settle", type=int, default=16, help="JSON requests before each event")
    parser.add_argument("--concurrency", type=int, default=1, help="requests in flight")
    parser.add_argument("--out", type=new_file, help="file for all batches, as JSON")
    add_lock_option(parser)
    options = parser.parse_args()
    with measuring("tests.bench.served.recovery", options.lock) as measurement:
        batches = asyncio.run(run(options, measurement.folder))
    print(f"\n{report(batches, options.concurrency)}\n\n{measurement.origin}", flush=True)
    if options.out:
        rows = [vars(each) for each in batches]
        options.out.write_text(json.dumps({"provenance": measurement.origin, "batches": rows}, indent=1))


if __name__ == "__main__":
    main()

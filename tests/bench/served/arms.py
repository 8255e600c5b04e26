"""The arms of the comparison and the servers behind them, which run side by side.

- off: without speculation;
- SGLang's NGRAM with 4 tokens, as many as our draft verifies, and with its own default, 12;
- the draft with fixed numbers of steps;
- SGLang's own ``--speculative-adaptive`` with the same draft and the default ladder;
- the speculation controller with the same draft, in the default configuration of a pod, which captures traces;
- the controller held to off: its engine, and requests that ask for no speculation;
- the controller in a fresh pod: with the untrained draft, and without any traffic before.

Invariants: all servers are built from one spec and differ in their speculation only. All but the fresh pod's have
answered the same traffic before. No server is flushed: SGLang's flush would empty NGRAM's corpus too
(``Scheduler.flush_cache`` calls ``clear_cache_pool``, 0.5.23). Every server that was started is stopped on exit.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
from tests.bench.stream_timing import time_stream
from tests.traffic.driver import Conversation

from aurora_api.v1alpha1.capture import CaptureSpec
from aurora_api.v1alpha1.draft import DraftSpec, Shape
from aurora_runtime.engine.server_process import STOP_SECONDS, EngineProcess, EngineSpec
from aurora_runtime.engine.sglang_client import open_session
from aurora_runtime.engine.speculation_flags import Eagle3, Ngram
from aurora_runtime.engine.speculation_settings import controller_of
from aurora_runtime.errors import MeasurementError
from aurora_runtime.serving.capture.settings import CAPTURE_VARIABLE, CaptureSettings
from aurora_runtime.validation.measured_engine import Answer, BatchResult, LoadClient
from aurora_runtime.validation.store_reads import FetchedDraft

NGRAM_TOKENS: Final = (4, 12)
START_TIMEOUT_SECONDS: Final = 480.0
FEED_CONCURRENCY: Final = 8
WARMUP_TOKENS: Final = 32


@dataclass(frozen=True)
class Arm:
    """One side of the comparison.

    Attributes:
        server: the server that answers. Two arms may share one.
        method: how the server speculates. None: without speculation.
        experienced: whether the server answers the traffic before it is measured.
        held_off: whether the requests ask for no speculation.
        traces: the folder in which the server captures traces. None: it captures none.
    """

    name: str
    server: str
    method: Eagle3 | Ngram | None = None
    experienced: bool = True
    held_off: bool = False
    traces: Path | None = None

    @property
    def is_stock(self) -> bool:
        """Whether the arm needs nothing of Aurora but the weights of a draft."""
        return not self.name.startswith("controller")

    @property
    def wish(self) -> dict[str, bool]:
        """What each request asks for (aurora_runtime/request_wish.py)."""
        return {"speculate": False} if self.held_off else {}


@dataclass(frozen=True)
class ArmSpec(EngineSpec):
    """The settings of one arm's server, which are those of all and the capture of traces."""

    capture: CaptureSettings | None = None

    def environment(self, base: Mapping[str, str], speculation: Eagle3 | Ngram | None = None) -> dict[str, str]:
        variables = super().environment(base, speculation)
        if self.capture is not None:
            variables |= {CAPTURE_VARIABLE: self.capture.to_json().decode()}
            variables["SGLANG_PLUGINS"] += ",aurora_capture"
        return variables

    def of(self, arm: Arm) -> ArmSpec:
        """The settings of the server of ``arm``."""
        if arm.traces is None:
            return self
        tokens = CaptureSpec().tokens_per_minute
        folder = str(arm.traces)
        return replace(
            self,
            capture=CaptureSettings(
                state_folder=folder, lineage=1, pod="bench", boot="bench", tokens_per_minute=tokens
            ),
        )


@dataclass(frozen=True)
class StockAdaptive(Eagle3):
    """SGLang's own rule chooses the steps, of its default ones (sglang/srt/speculative/adaptive_spec_params.py:28)."""

    def arguments(self) -> list[str]:
        return [*super().arguments(), "--speculative-adaptive"]


def arms_of(trained: FetchedDraft, untrained: FetchedDraft, steps: Sequence[int], folder: Path) -> tuple[Arm, ...]:
    """The arms, with off first and without the arms of ``trained`` where it is the untrained draft.

    Args:
        steps: the numbers of steps of the arms with a fixed draft.
        folder: for what the controllers write beside their logs.
    """
    arms = [Arm("off", "off"), *(Arm(f"NGRAM, {n} tokens", f"ngram-{n}", Ngram(n)) for n in NGRAM_TOKENS)]
    if trained != untrained:
        draft = Eagle3(trained.folder, trained.version, DraftSpec())
        fixed = [(count, replace(draft, spec=DraftSpec(steps=count, shape=Shape.FIXED))) for count in steps]
        arms += [Arm(f"draft, {count} steps", f"draft-{count}", method) for count, method in fixed]
        adaptive = StockAdaptive(trained.folder, trained.version, DraftSpec())
        arms.append(Arm("SGLang adaptive", "sglang-adaptive", adaptive))
    controller = _controlled("controller", "controller", trained, folder)
    return (
        *arms,
        controller,
        replace(controller, name="controller, held to off", held_off=True),
        replace(_controlled("controller, fresh pod", "fresh", untrained, folder), experienced=False),
    )


def _controlled(name: str, server: str, draft: FetchedDraft, folder: Path) -> Arm:
    own = folder / server
    own.mkdir()
    spec = DraftSpec()
    method = Eagle3(draft.folder, draft.version, spec, controller_of(spec, own, "bench"))
    return Arm(name, server, method, traces=own)


@dataclass
class Servers:
    """The servers of ``arms``. Use it as an async context manager.

    Attributes:
        folder: for the servers' logs.
        tokenizer: that of the target.
        max_new_tokens: largest number of tokens of an answer.
    """

    spec: ArmSpec
    folder: Path
    arms: Sequence[Arm]
    tokenizer: Any
    max_new_tokens: int
    _warmup: list[str] = field(default_factory=list, init=False)
    _processes: dict[str, EngineProcess] = field(default_factory=dict, init=False)
    _session: aiohttp.ClientSession = field(init=False)

    async def __aenter__(self) -> Self:
        self._session = open_session()
        try:
            for arm in {arm.server: arm for arm in self.arms}.values():
                # One after the other: servers that start together take longer on two cores, and may time out.
                process = self._processes[arm.server] = EngineProcess(arm.server, self.folder / f"{arm.server}.log")
                process.start(self.spec.of(arm), arm.method)
                await asyncio.to_thread(process.wait_ready, time.monotonic() + START_TIMEOUT_SECONDS)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        await self._session.close()
        for process in self._processes.values():
            process.ask_to_stop()
        for process in self._processes.values():
            process.stop(STOP_SECONDS)

    def _url(self, server: str) -> str:
        """Raises :class:`MeasurementError` when the server died: it would pass for a slow one."""
        process = self._processes[server]
        if not process.is_alive():
            raise MeasurementError(f"server {server} died; the end of its log:\n{process.log_tail()}")
        return process.url

    def _client(self, server: str, wish: Mapping[str, bool]) -> LoadClient:
        return LoadClient(self._session, self._url(server), wish=wish)

    async def learn(self, traffic: Sequence[Conversation], warmup: Sequence[Conversation]) -> None:
        """Let each experienced server answer ``traffic``. ``warmup`` is for later, and is in no batch.

        Raises :class:`MeasurementError` when a request failed.
        """
        self._warmup = [self._text([*one.opening(), _user(one.turns[0])]) for one in warmup]
        for arm in {arm.server: arm for arm in self.arms if arm.experienced}.values():
            # In turn: servers that answer at once take each other's time, and the controller learns it.
            results = await self.run(arm, traffic, FEED_CONCURRENCY)
            if failures := sum(result.failures for result in results):
                raise MeasurementError(f"{arm.name}: {failures} requests failed while it answered the traffic")

    async def prepare(self, arm: Arm, concurrency: int, first_warmup: int = 0) -> list[float]:
        """Answer ``concurrency`` warm-up requests at once, outside of any batch, from the place ``first_warmup`` on.

        Returns the milliseconds of a step of each, which are the cost of a round.
        """
        port = urlsplit(self._url(arm.server)).port
        assert port is not None, "every engine has a port"
        stream = functools.partial(time_stream, port, tokens=WARMUP_TOKENS, wish=arm.wish)
        texts = itertools.islice(itertools.cycle(self._warmup), first_warmup, first_warmup + concurrency)
        return await asyncio.gather(*(asyncio.to_thread(stream, text) for text in texts))

    async def run(self, arm: Arm, conversations: Sequence[Conversation], concurrency: int) -> list[BatchResult]:
        """Answer each turn of ``conversations`` with ``concurrency`` requests in flight. One result for each turn.

        The answers of a turn are the history of the next one. Raises :class:`MeasurementError` when the server died.
        """
        histories, results = [one.opening() for one in conversations], list[BatchResult]()
        client = self._client(arm.server, arm.wish)
        for turns in zip(*(one.turns for one in conversations), strict=True):
            for history, turn in zip(histories, turns, strict=True):
                history.append(_user(turn))
            result = await client.batch(list(map(self.tokens, histories)), concurrency, self.max_new_tokens)
            self._url(arm.server)  # still alive
            for history, answer in zip(histories, result.answers, strict=True):
                history.append({"role": "assistant", "content": self._answer(answer)})
            results.append(result)
        return results

    def tokens(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """A request's token ids."""
        ids: list[int] = self.tokenizer(self._text(messages))["input_ids"]
        return ids

    def _text(self, messages: Sequence[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def _answer(self, answer: Answer | None) -> str:
        return "" if answer is None else str(self.tokenizer.decode(answer.tokens, skip_special_tokens=True))

    async def margin(self, prefix: Sequence[int], one: int, other: int) -> float:
        """The logit margin between two tokens after ``prefix``, by the server without speculation."""
        return await self._client("off", {}).margin(prefix, one, other)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}

"""The servers under measurement are flushed, fed, swapped and stopped as they should. Fake engines record requests."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import pytest
from aiohttp import web

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.engine.server_process import STOP_SECONDS, EngineSpec
from aurora_runtime.engine.speculation_flags import Eagle3, Ngram
from aurora_runtime.errors import EngineFault, MeasurementError
from aurora_runtime.validation.draft_fetch import FetchedDraft
from aurora_runtime.validation.engines import engine_set
from aurora_runtime.validation.engines.engine_set import EngineSet
from tests.bench.learning.served import serve_in_turn
from tests.bench.served.lineup import lineup_of, with_controller
from tests.bench.served.live_training import Checkpoint, TrainingRecord
from tests.bench.served.paired_rounds import MeasurementPlan, measure
from tests.bench.served.servers import DRAFT, Servers
from tests.unit.fakes import FakeEngine

SPEC = EngineSpec("model", "cpu", 1024)
WARM = ["warm one", "warm two"]
CONTROLLED = tuple(f"controlled-{number}" for number in range(4))


class AnsweringEngine(FakeEngine):
    """Also answers: a prompt's own tokens come back. Every prompt is recorded with the draft that is loaded."""

    def __init__(self) -> None:
        super().__init__(key=None)
        self.asked = list[tuple[str, tuple[int, ...]]]()  # the draft's version, and the prompt
        self.warmed = Counter[str]()
        self.flushed = 0

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_post("/generate", self._generate)
        return app

    async def _flush(self, request: web.Request) -> web.Response:
        self.flushed += 1
        return await super()._flush(request)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        meta = {"finish_reason": {"type": "stop"}, "spec_verify_ct": 1}
        if not body.get("stream"):
            self.asked.append((self.version, tuple(body["input_ids"])))
            return web.json_response({"output_ids": body["input_ids"], "meta_info": meta})
        self.warmed[body["text"]] += 1
        response = web.StreamResponse()
        await response.prepare(request)
        for tokens, rounds in ((1, 0), (4, 1)):
            piece = {"meta_info": {**meta, "completion_tokens": tokens, "spec_verify_ct": rounds}}
            await response.write(f"data: {json.dumps(piece)}\n\n".encode())
        return response


class FakeProcess:
    """Stands in for an engine's process. The engine runs already, at a known address."""

    urls: ClassVar[dict[str, str]] = {}
    started: ClassVar[dict[str, Eagle3 | Ngram | None]] = {}
    stopped: ClassVar[list[str]] = []
    dead: ClassVar[set[str]] = set()

    def __init__(self, name: str, _: Path) -> None:
        self.name = name

    @property
    def url(self) -> str:
        return self.urls[self.name]

    def start(self, _: EngineSpec, kind: Eagle3 | Ngram | None, *, memory_share: float) -> None:
        self.started[self.name] = kind

    def wait_ready(self, _: float) -> None:
        if self.name in self.dead:
            raise EngineFault(f"engine {self.name} exited while starting")

    def is_alive(self) -> bool:
        return self.name not in self.dead

    def log_tail(self) -> str:
        return "the end"

    def ask_to_stop(self) -> None:
        pass

    def stop(self, patience_seconds: float = STOP_SECONDS) -> None:
        self.stopped.append(self.name)


def checkpoint(folder: Path, version: int, weights: bytes) -> Checkpoint:
    place = folder / str(version)
    place.mkdir()
    (place / "model.safetensors").write_bytes(weights)
    return Checkpoint(FetchedDraft(place, version), TrainingRecord(1000 * version, 0, 0, 0, 0.0, version, 0.0))


@pytest.fixture
async def engines(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, AnsweringEngine]]:
    monkeypatch.setattr(engine_set, "EngineProcess", FakeProcess)
    for shared in (FakeProcess.urls, FakeProcess.started, FakeProcess.stopped, FakeProcess.dead):
        shared.clear()
    running = {name: AnsweringEngine() for name in ("off", "ngram-4", "ngram-12", "draft", *CONTROLLED)}
    async with contextlib.AsyncExitStack() as stack:
        for name, engine in running.items():
            engine.ranks = 1
            FakeProcess.urls[name] = await stack.enter_async_context(engine.running())
        yield running


async def test_every_arm_is_asked_the_same_prompts_and_each_draft_under_its_own_version(
    engines: dict[str, AnsweringEngine], tmp_path: Path
) -> None:
    drafts = [checkpoint(tmp_path, version, bytes([version])) for version in range(3)]
    lineup = with_controller(lineup_of(drafts, (4, 12)), drafts, DraftSpec(), tmp_path)
    plan = MeasurementPlan(lineup.arms, (1, 2), rounds=2, prompts_per_worker=2, near_tie_gap=0.5)
    prompts = [[number, number] for number in range(plan.prompts_needed)]
    learned = [[100 + number] for number in range(10)]
    async with Servers(EngineSet(SPEC, tmp_path), lineup.servers, WARM, 8) as running:
        await running.learn_checksums(lineup.arms)
        await running.feed(lineup.experienced, learned)
        measured = await measure(running, plan, prompts, lambda tokens: " ".join(map(str, tokens)))
    assert FakeProcess.started == dict(lineup.servers)
    assert sorted(FakeProcess.stopped) == sorted(engines)
    asked = {tuple(prompt) for prompt in prompts}
    assert lineup.fresh == CONTROLLED[0]
    for name in ("ngram-4", "ngram-12", *CONTROLLED[1:]):
        received = [prompt for _, prompt in engines[name].asked]
        assert Counter(received) == Counter([*map(tuple, learned), *asked])
        assert set(received[: len(learned)]) == set(map(tuple, learned)), "the traffic comes first"
    for name in ("off", lineup.fresh):
        assert {prompt for _, prompt in engines[name].asked} == asked
    assert Counter(engines["draft"].asked) == Counter((str(v), prompt) for v in range(3) for prompt in asked)
    swaps = engines["draft"].calls.count("update_weights_from_tensor")
    assert engines["draft"].flushed == swaps > len(drafts)
    assert not any(engines[name].flushed for name in ("off", "ngram-4", "ngram-12"))
    assert {name: engine.warmed.total() for name, engine in engines.items()} == {
        "off": 6, "ngram-4": 6, "ngram-12": 6, "draft": 18, **dict.fromkeys(CONTROLLED, 6),
    }  # fmt: skip
    assert all(one.identical == plan.prompts_needed for one in measured.equality.values())


async def test_a_draft_that_the_engine_did_not_load_is_not_measured(
    engines: dict[str, AnsweringEngine], tmp_path: Path
) -> None:
    drafts = [checkpoint(tmp_path, version, bytes([version])) for version in range(2)]
    lineup = lineup_of(drafts, (4,))
    async with Servers(EngineSet(SPEC, tmp_path), lineup.servers, WARM, 8) as running:
        await running.learn_checksums(lineup.arms)
        engines["draft"].faults = {"update_weights_from_tensor": "silent"}
        with pytest.raises(EngineFault, match="does not hold draft 0"):
            await running.prepare(lineup.arms[2], 1, 0)


async def test_drafts_with_the_same_checksum_are_rejected(engines: dict[str, AnsweringEngine], tmp_path: Path) -> None:
    drafts = [checkpoint(tmp_path, version, b"the same") for version in range(2)]
    lineup = lineup_of(drafts, (4,))
    with pytest.raises(EngineFault, match="one checksum"):
        async with Servers(EngineSet(SPEC, tmp_path), lineup.servers, WARM, 8) as running:
            await running.learn_checksums(lineup.arms)


async def test_started_servers_are_stopped_when_another_does_not_start(
    engines: dict[str, AnsweringEngine], tmp_path: Path
) -> None:
    lineup = lineup_of([checkpoint(tmp_path, 0, b"0")], (4,))
    FakeProcess.dead.add("ngram-4")
    with pytest.raises(EngineFault, match="ngram-4 exited"):
        async with Servers(EngineSet(SPEC, tmp_path), lineup.servers, WARM, 8):
            pass
    assert FakeProcess.stopped == ["off", "ngram-4"]


async def test_a_server_that_dies_ends_the_measurement(engines: dict[str, AnsweringEngine], tmp_path: Path) -> None:
    lineup = lineup_of([checkpoint(tmp_path, 0, b"0")], (4,))
    async with Servers(EngineSet(SPEC, tmp_path), lineup.servers, WARM, 8) as running:
        FakeProcess.dead.add("off")
        with pytest.raises(MeasurementError, match="engine off died"):
            await running.run(lineup.arms[0], [[1]], 1)


async def test_the_draft_of_every_evaluation_is_measured_and_equal_weights_count_as_one_draft(
    engines: dict[str, AnsweringEngine], tmp_path: Path
) -> None:
    """In tests.bench.learning.served all runs begin with the same draft, so equal checksums are no fault there."""
    folders = [tmp_path / name / number for name in ("fifo", "replay") for number in ("0", "1")]
    for folder, weights in zip(folders, (b"untrained", b"fifo", b"untrained", b"replay"), strict=True):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(weights)
    prompts = [[1, 2, 3], [4, 5, 6]]
    async with Servers(EngineSet(SPEC, tmp_path), {DRAFT: Eagle3(folders[0], 0, DraftSpec())}, (), 8) as running:
        lengths = await serve_in_turn(running, folders, prompts)
    assert lengths == [2.0] * 4, "an answer's first token belongs to no round"
    asked = engines["draft"].asked
    assert [{version for version, _ in asked[at : at + 2]} for at in range(0, 8, 2)] == [{"0"}, {"1"}, {"0"}, {"2"}]
    assert Counter(prompt for _, prompt in asked) == {(1, 2, 3): 4, (4, 5, 6): 4}
    assert not engines["draft"].warmed

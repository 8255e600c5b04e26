"""The speculation worker in a real server: no decision changes an answer, and the draft misses nothing.

Everything computes in fp32, so that answers and proposals can be compared for equality. The server takes fixed arms in
turn. First every round drafts, which gives the reference. Then off, lookup and draft alternate. A second server begins
with a draft that it does not run. In a third one the controller chooses the rounds, and parks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_runtime.engine.draft_swap import DraftSwap
from aurora_runtime.engine.sglang_client import SGLangClient, open_session
from aurora_runtime.engine.speculation_flags import Eagle3
from aurora_runtime.engine.speculation_settings import SpeculationSettings, round_controller
from aurora_runtime.serving.capture.settings import CAPTURE_VARIABLE, PROBE_PREFIX, CaptureSettings
from aurora_runtime.serving.pod_files import SpeculationState
from aurora_runtime.traces import ProposalSource, RequestTrace, decode
from aurora_runtime.validation.store_reads import FetchedDraft
from tests.assets.bench_engine import server_environment
from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft, write_repeating_draft
from tests.assets.sglang_server import Server, sglang_server
from tests.assets.trace_budget import TRACE_ALL
from tests.integration.engine.faulty_hooks import FAULT_VARIABLE, HOOKS, faulty_python
from tests.integration.engine.plain_answers import FIXED_TOKENS, FP32, PlainAnswers, token_answer, token_prompts
from tests.integration.engine.request_kinds import KINDS, PARSERS

pytestmark = pytest.mark.timeout(1500)

STEPS = 3
REFERENCE_ROUNDS = 2 + 3 * FIXED_TOKENS
"""Rounds in which the draft proposes: the probe and the first three answers take at most so many."""
ALTERNATING = (
    "off",
    "off",
    "draft-3",
    "lookup-7",
    "draft-3",
    "draft-3",
    "off",
    "lookup-7",
    "union-1",
    "off",
    "draft-3",
)


@dataclass(frozen=True)
class Controlled:
    """A server whose rounds take fixed arms."""

    server: Server
    folder: Path
    other_draft: Path

    def ask(self, prompt: list[int]) -> list[int]:
        return token_answer(self.server, prompt)

    def state(self) -> SpeculationState:
        return SpeculationState.from_json((self.folder / "speculation.json").read_bytes())

    def state_once(self, holds: Callable[[SpeculationState], bool]) -> SpeculationState:
        """The engine's report, which it writes every second, once ``holds`` holds of it."""
        deadline = time.monotonic() + 60
        while not holds(state := self.state()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the report stayed {state}")
            time.sleep(0.1)
        return state

    def traces(self, answers: list[list[int]]) -> dict[tuple[int, ...], list[RequestTrace]]:
        """All traces by their tokens, once there are as many as ``answers``."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found: dict[tuple[int, ...], list[RequestTrace]] = {}
            for manifest in sorted((self.folder / "spool").glob("*.json")):
                for trace in decode(manifest.with_suffix(".safetensors").read_bytes()):
                    found.setdefault(tuple(trace.tokens.tolist()), []).append(trace)
            if sum(map(len, found.values())) >= len(answers):
                return found
            time.sleep(0.3)
        raise TimeoutError("the traces were not written")


@pytest.fixture(scope="module")
def controlled(plain: PlainAnswers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controlled]:
    """The server starts after the one of `plain` has ended."""
    arms = ("draft-3",) * REFERENCE_ROUNDS + ALTERNATING * 200
    with controlled_server(tmp_path_factory.mktemp("state"), arms) as server:
        yield server


@contextlib.contextmanager
def controlled_server(
    folder: Path,
    arms: tuple[str, ...],
    *,
    untrained_versions: tuple[int, ...] = (),
    lookup: LookupScope = LookupScope.REQUEST,
    env: Mapping[str, str] | None = None,
) -> Iterator[Controlled]:
    """A server with version 0 of a draft."""
    target = ensure_model()
    draft = write_random_draft(folder / "draft", target, seed=3, scale=0.05)
    other = write_repeating_draft(folder / "other", target)
    settings = SpeculationSettings(
        state_folder=str(folder),
        boot="boot",
        draft_steps=STEPS,
        lookup_steps=7,
        lookup=lookup,
        untrained_versions=untrained_versions,
        fixed_arms=arms,
    )
    capture = CaptureSettings(
        state_folder=str(folder), lineage=1, pod="pod", boot="boot", tokens_per_minute=TRACE_ALL, shard_seconds=0.2
    )
    controller = round_controller(settings, folder / "adaptive.json")
    flags = Eagle3(draft, 0, DraftSpec(steps=STEPS), controller).arguments()
    with sglang_server(
        target,
        extra_args=[*FP32, *PARSERS, "--skip-server-warmup", *flags],
        env={**controller.environment(), CAPTURE_VARIABLE: capture.to_json().decode(), **(env or {})},
        plugins="aurora_cpu,aurora_vocabulary,aurora_speculation,aurora_capture",
        log=folder / "log",
        stop_seconds=0,
    ) as server:
        yield Controlled(server, folder, other)


def test_answers_and_proposals_do_not_depend_on_the_rounds_before(controlled: Controlled, plain: PlainAnswers) -> None:
    probe = {"text": "Hi", "rid": f"{PROBE_PREFIX}1", "sampling_params": {"max_new_tokens": 2, "ignore_eos": True}}
    controlled.server.post("/generate", probe)
    reference = [controlled.ask(prompt) for prompt in token_prompts()]
    assert reference == plain.tokens
    alone = [controlled.ask(prompt) for prompt in token_prompts()]
    assert alone == plain.tokens
    with ThreadPoolExecutor(4) as clients:
        together = list(clients.map(controlled.ask, token_prompts()))
    assert together == plain.tokens
    traces = controlled.traces(reference + alone + together)
    compared, sources, widths = 0, set[int](), set[int]()
    for prompt, answer in zip(token_prompts(), plain.tokens, strict=True):
        first, *later = traces[tuple(prompt + answer)]
        assert len(later) == 2
        expected = proposals(first)
        for trace in later:
            sources |= set(trace.source.tolist())
            widths |= set(trace.node_count.tolist())
            for root, tokens in proposals(trace).items():
                if root in expected:
                    assert tokens == expected[root]
                    compared += 1
    assert sources == set(ProposalSource)
    assert widths == {1, 2, STEPS + 1, 8}, "every arm took part"
    assert compared > 20


def proposals(trace: RequestTrace) -> dict[int, list[int]]:
    """What the draft proposed in its full rounds, by the position of the round's root."""
    nodes = iter(trace.node_token.tolist())
    by_round = zip(trace.root.tolist(), trace.node_count.tolist(), trace.source.tolist(), strict=True)
    found = {(root, source): [next(nodes) for _ in range(count)] for root, count, source in by_round}
    return {
        root: tokens
        for (root, source), tokens in found.items()
        if source == ProposalSource.DRAFT and len(tokens) == STEPS + 1
    }


def test_every_kind_of_request_is_answered_as_without_speculation(controlled: Controlled, plain: PlainAnswers) -> None:
    alone = {kind: ask(controlled.server) for kind, ask in KINDS.items()}
    assert alone == plain.kinds
    with ThreadPoolExecutor(len(KINDS)) as clients:
        running = {kind: clients.submit(ask, controlled.server) for kind, ask in KINDS.items()}
        time.sleep(0.3)
        asyncio.run(swap(controlled))
        assert {kind: answer.result() for kind, answer in running.items()} == plain.kinds


def test_a_swap_while_rounds_alternate_changes_no_answer(controlled: Controlled, plain: PlainAnswers) -> None:
    with ThreadPoolExecutor(4) as clients:
        running = [clients.submit(controlled.ask, prompt) for prompt in token_prompts()]
        time.sleep(0.3)
        asyncio.run(swap(controlled, version=2))
        assert [answer.result() for answer in running] == plain.tokens
    asyncio.run(flush_cache(controlled.server))  # the cached prompts were processed by the former draft
    assert [controlled.ask(prompt) for prompt in token_prompts()] == plain.tokens


async def swap(controlled: Controlled, version: int = 1) -> None:
    async with open_session() as session:
        await DraftSwap(SGLangClient(session, controlled.server.url)).load(
            FetchedDraft(controlled.other_draft, version)
        )


async def flush_cache(server: Server) -> None:
    async with open_session() as session:
        await SGLangClient(session, server.url).flush_prefix_cache()


def test_the_report_counts_rounds_by_arm_and_tokens_by_source(controlled: Controlled) -> None:
    time.sleep(1.5)
    state = controlled.state()
    assert state.ok
    assert state.errors == 0
    assert {"off", "draft-3", "draft-1", "lookup-7"} <= state.rounds_by_arm.keys()
    assert sum(state.draft.proposed_at) > 100
    assert sum(state.draft.accepted_at) > 5, "the draft after the swap repeats tokens"
    assert sum(state.lookup.accepted_at) > 5
    log = (controlled.folder / "log").read_text(errors="replace")
    assert "Switch adaptive runtime state: steps 0" not in log
    assert json.loads((controlled.folder / "capture.json").read_text())["hookErrors"] == 0


def test_a_draft_that_has_not_learned_proposes_nothing_until_another_is_swapped_in(
    plain: PlainAnswers, tmp_path: Path
) -> None:
    with controlled_server(tmp_path, ("draft-3", "lookup-7", "off"), untrained_versions=(0,)) as controlled:
        with ThreadPoolExecutor(4) as clients:
            before = list(clients.map(controlled.ask, token_prompts()))
            assert before == plain.tokens
            state = controlled.state_once(
                lambda s: s.rounds_by_arm.get("draft-3", 0) > 5 and sum(s.lookup.proposed_at) > 0
            )
            assert sum(state.draft.proposed_at) == 0
            running = [clients.submit(controlled.ask, prompt) for prompt in token_prompts()]
            time.sleep(0.3)
            asyncio.run(swap(controlled))
            assert [answer.result() for answer in running] == plain.tokens
            asyncio.run(flush_cache(controlled.server))
            assert list(clients.map(controlled.ask, token_prompts())) == plain.tokens
        assert controlled.state_once(lambda s: sum(s.draft.accepted_at) > 5).errors == 0  # its draft repeats tokens


def test_answers_are_the_same_while_the_controller_is_active_or_parked_and_across_a_swap(
    plain: PlainAnswers, tmp_path: Path
) -> None:
    """Without lookup nothing pays before the swap."""
    with controlled_server(tmp_path, (), lookup=LookupScope.OFF) as controlled:
        for swaps in (False, True):
            if swaps:
                asyncio.run(swap(controlled))
            for _ in range(3):
                assert [controlled.ask(prompt) for prompt in token_prompts()] == plain.tokens
            with ThreadPoolExecutor(4) as clients:
                assert list(clients.map(controlled.ask, token_prompts())) == plain.tokens
        state = controlled.state_once(lambda s: s.rounds_by_arm.get("off", 0) > 100)
    assert state.errors == 0
    assert sum(state.draft.proposed_at) > 0, "it was active, too"


def test_an_error_in_any_hook_fails_no_request_and_changes_no_answer(plain: PlainAnswers, tmp_path: Path) -> None:
    """Each error ends the controller. The test starts it again before the next one."""
    fault = tmp_path / "fault"
    python = [faulty_python(tmp_path / "python"), server_environment(os.environ).get("PYTHONPATH", "")]
    env = {FAULT_VARIABLE: str(fault), "PYTHONPATH": os.pathsep.join(python)}
    with controlled_server(tmp_path, ("lookup-7", "draft-3", "off") * 800, env=env) as controlled:
        for hook in HOOKS:
            fault.write_text(hook)
            with ThreadPoolExecutor(4) as clients:
                assert list(clients.map(controlled.ask, token_prompts())) == plain.tokens, hook
            assert not fault.exists(), f"{hook} did not run"
        state = controlled.state_once(lambda s: s.errors >= len(HOOKS))
    assert state.errors == len(HOOKS)
    assert state.rounds_by_arm.keys() >= {"lookup-7", "draft-3", "off"}
    log = (tmp_path / "log").read_text(errors="replace")
    assert {hook for hook in HOOKS if f"{hook} failed, so every round is off: ZeroDivisionError" in log} == set(HOOKS)

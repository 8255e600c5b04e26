"""The hooks in a miniature engine: whatever is decided, answers are right and the draft sees no gap."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.engine.arms import Source
from aurora_runtime.held_out_split import is_held_out, prompt_hash
from aurora_runtime.serving.speculation.engine import SKIP_EXTEND_VARIABLE, EngineControl, RankAgreement
from aurora_runtime.serving.speculation.hooks import WorkerHooks
from tests.unit.serving.speculation.fake_engine import (
    ARMS,
    PROMPT_TOKENS,
    SETTINGS,
    UNIQUE,
    UNTRAINED,
    FakeEngine,
    Recording,
)
from tests.unit.serving.speculation.fake_requests import FakeRequest, FakeSampling

overlap = pytest.mark.parametrize("overlaps", [False, True], ids=["in turn", "overlap"])


PROMPT = "what a client asked"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    yield
    os.environ.pop(SKIP_EXTEND_VARIABLE, None)


def fail(*_: object) -> None:
    raise ZeroDivisionError


@given(
    arms=st.lists(st.sampled_from(ARMS), min_size=1, max_size=8),
    max_tokens=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    overlaps=st.booleans(),
    seed=st.integers(0, 99),
    retract_share=st.sampled_from([0.0, 0.1]),
    parks=st.sampled_from([0, 3, 20]),
    uses=st.none() | st.lists(st.booleans(), min_size=1, max_size=5),
    swap_at=st.sampled_from([None, 0, 3, 10]),
)
def test_answers_are_right_the_draft_sees_no_gap_and_requests_leave_nothing(
    arms: list[str],
    max_tokens: list[int],
    overlaps: bool,
    seed: int,
    retract_share: float,
    parks: int,
    uses: list[bool] | None,
    swap_at: int | None,
) -> None:
    """The engine itself checks each pass of the draft. With ``swap_at`` an untrained draft serves until this round."""
    policy = Recording(arms, parks, uses)
    fake = FakeEngine(policy, overlaps=overlaps, seed=seed, retract_share=retract_share)
    prefills_before = list[int]()
    if swap_at is not None:
        fake.version = UNTRAINED

        def swap(decisions: int) -> None:
            if decisions == swap_at:
                prefills_before.append(fake.draft_prefills)
                fake.version = "1"

        policy.before_choice = swap
    for req in fake.run(max_tokens):
        assert req.output_ids == [req.token(PROMPT_TOKENS + i) for i in range(len(req.output_ids))]
        assert len(req.output_ids) >= req.max_tokens
    assert prefills_before in ([0], []), "the untrained draft processed no prompt"
    assert fake.control.texts._indexed == {}
    assert fake.hooks._can_draft == {}
    assert fake.report.errors == 0
    assert sum(fake.report.state().rounds_by_arm.values()) >= fake.rounds - overlaps - len(max_tokens)


@overlap
def test_lookup_proposes_from_the_last_committed_token(overlaps: bool) -> None:
    fake = FakeEngine(Recording(["lookup-5"]), overlaps=overlaps)
    fake.run([40])
    state = fake.report.state()
    assert sum(state.lookup.accepted_at) > 15, "the target's text repeats itself"
    assert sum(state.lookup.accepted_at) == sum(state.lookup.proposed_at), (
        "no proposal came from a text without its last tokens"
    )


@overlap
def test_a_draft_in_use_processes_every_round_so_that_it_can_draft_in_any(overlaps: bool) -> None:
    fake = FakeEngine(Recording(["off", "lookup-2", "draft-3"]), overlaps=overlaps)
    fake.run([60])
    assert fake.draft_extends == fake.rounds
    drafting = [d for d in fake.policy.decisions if d.arm.drafts]
    assert drafting
    assert {d.sources for d in drafting} == {(Source.DRAFT,)}


@overlap
def test_a_request_that_the_draft_missed_goes_without_it_to_its_end(overlaps: bool) -> None:
    uses = [True] * 4 + [False] * 3 + [True] * 60
    fake = FakeEngine(Recording(["off", "draft-1", "off"], uses=uses), overlaps=overlaps)
    fake.run([50])
    drafted = [Source.DRAFT in d.sources for d in fake.policy.decisions]
    assert any(drafted[:4])
    assert not any(drafted[7:])


@overlap
def test_a_parked_round_decides_nothing_and_needs_no_lengths(overlaps: bool) -> None:
    fake = FakeEngine(Recording(["off"], parks=10), overlaps=overlaps)
    fake.hooks.around_cpu_lengths(lambda _: False, ())
    fake.run([45], period=UNIQUE)
    assert len(fake.policy.decisions) <= 5
    assert fake.policy.parked == fake.rounds - len(fake.policy.decisions)
    assert fake.without_lengths == (fake.policy.parked if overlaps else 0)
    assert fake.draft_extends == 0


@overlap
def test_long_matches_in_old_text_end_the_parking(overlaps: bool) -> None:
    fake = FakeEngine(Recording(["off"], parks=32), overlaps=overlaps)
    fake.run([30], period=UNIQUE)
    assert len(fake.policy.decisions) == 1, "nothing of eight tokens came back"
    fake.run([30], prompt=18, prefix="repeats")
    assert len(fake.policy.decisions) > 3


def test_a_prefill_that_the_draft_processes_ends_the_parking() -> None:
    """The second request comes after ten rounds, when the draft has come into use."""
    policy = Recording(["off", "draft-1"], parks=100, uses=[False])
    fake = FakeEngine(policy)
    release, late = fake.run([1], period=UNIQUE)[0], fake.policy.round_parked

    def join(batch_size: int) -> None:
        late(batch_size)
        if policy.parked == 10:
            release.ended, release.output_ids, release.max_tokens = False, [], 20
            policy.uses = None
            fake.waiting.append(release)

    policy.round_parked = join  # type: ignore[method-assign]
    fake.run([40], prefix="s", period=UNIQUE)
    assert policy.parked == 10
    assert any(Source.DRAFT in decision.sources for decision in policy.decisions)


@overlap
def test_requests_that_a_measurement_holds_to_off_are_answered_without_anything(overlaps: bool) -> None:
    fake = FakeEngine(Recording(["draft-3"]), overlaps=overlaps)
    fake.run([20, 20], wish={"speculate": False})
    assert fake.policy.decisions == []
    assert fake.report.state().rounds_by_arm == {"off": fake.rounds}
    assert (fake.draft_prefills, fake.draft_extends) == (0, 0)


HOOKS = (
    *("around_lengths", "around_forward", "around_rule", "around_draft", "around_verify"),
    *("around_extend", "around_prefill_extend", "around_release"),
)


@overlap
@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_in_any_line_of_a_hook_ends_the_controller_and_no_request(
    hook: str, call: int, overlaps: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Once at each line that runs in this call of the hook. The calls find rounds of all kinds."""
    code = inspect.unwrap(getattr(WorkerHooks, hook)).__code__
    reached = set[int]()
    for line in sorted({line for *_, line in code.co_lines() if line is not None and line > code.co_firstlineno}):
        fake = FakeEngine(Recording(["lookup-5", "draft-3", "off", "draft-1"]), overlaps=overlaps)
        with raised_at(code, line, call) as raised:
            requests = fake.run([12, 9, 5, 20])
        for req in requests:
            assert req.output_ids[: req.max_tokens] == [req.token(PROMPT_TOKENS + i) for i in range(req.max_tokens)]
        assert (fake.report.errors, fake.hooks._held) == (len(raised), bool(raised))
        if raised:
            reached.add(line)
    assert reached, "the hook ran"
    assert PROMPT not in caplog.text
    assert caplog.text.count(f"{hook} failed, so every round is off: ZeroDivisionError") == len(reached)


@contextlib.contextmanager
def raised_at(code: CodeType, line: int, call: int) -> Iterator[list[int]]:
    """Raise when a function comes to a line, in this call or a later one. Holds the line once that has happened."""
    raised, calls = list[int](), 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal calls
        if frame.f_code is not code or raised:
            return None
        if event == "call":
            calls += 1
            return trace if calls >= call else None
        if event == "line" and frame.f_lineno == line:
            raised.append(line)
            raise ZeroDivisionError(PROMPT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield raised
    finally:
        sys.settrace(before)


@overlap
def test_with_several_ranks_a_failed_one_goes_on_until_all_agree(
    overlaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeEngine(Recording(["draft-3"]), overlaps=overlaps)
    told = list[bool]()

    def agree(numbers: Sequence[int], *, failed: bool) -> tuple[list[int], bool]:
        told.append(failed)
        return list(numbers), len(told) > 4

    monkeypatch.setattr(fake.control, "ranks", SimpleNamespace(is_single=False, decides=True, agree=agree))
    monkeypatch.setattr(fake.control.texts, "proposals", fail)
    [req] = fake.run([20])
    assert len(req.output_ids) >= 20
    assert told == [False, True, True, True, True], "the prefill, and four rounds"
    assert fake.steps == 0


def test_an_error_of_sglang_is_raised() -> None:
    fake = FakeEngine(Recording(["draft-3"]))
    with pytest.raises(ZeroDivisionError):
        fake.hooks.around_lengths(fail, fake.future_map)
    assert not fake.hooks._held


def test_the_policy_hears_of_the_former_drafts_rounds_before_the_next_draft_serves() -> None:
    policy = Recording(["draft-3"])
    fake = FakeEngine(policy)
    heard = list[int]()

    def swap(decisions: int) -> None:
        heard.append(len(policy.observed))
        fake.version = "2" if decisions >= 4 else "1"  # read before the next decision

    policy.before_choice = swap
    fake.run([40])
    assert policy.served == ["1", "2"]
    assert heard == list(range(len(heard))), "each decision knows all rounds before it"


@overlap
def test_after_a_roll_back_to_the_untrained_draft_no_round_drafts(overlaps: bool) -> None:
    policy = Recording(["draft-3"])
    fake = FakeEngine(policy, overlaps=overlaps)

    def roll_back(decisions: int) -> None:
        fake.version = UNTRAINED if decisions >= 4 else "1"  # read before the next decision

    policy.before_choice = roll_back
    fake.run([40, 40])
    drafted = [Source.DRAFT in decision.sources for decision in policy.decisions]
    assert drafted == [True] * 5 + [False] * (len(drafted) - 5)
    assert len(drafted) > 10
    assert policy.served == ["1", None]


@pytest.mark.parametrize("version", [UNTRAINED, "1"])
@pytest.mark.parametrize("of_rank_0", [0, 1])
def test_rank_0_says_whether_the_draft_processes_a_prompt(
    version: str, of_rank_0: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load may fail on one rank only. A rank alone in the draft's pass would wait for the others for ever."""
    fake = FakeEngine(Recording(["off"]))
    fake.version = version
    monkeypatch.setattr(fake.hooks, "_agree", lambda _, numbers: [of_rank_0] if len(numbers) == 1 else numbers)
    fake.run([3])
    assert fake.draft_prefills == of_rank_0


def test_a_prompt_with_a_chunk_that_the_draft_did_not_process_goes_without_it() -> None:
    policy = Recording(["draft-1"], uses=[False])
    fake, req = FakeEngine(policy), FakeRequest("r")
    batch = SimpleNamespace(forward_mode=SimpleNamespace(is_extend=lambda: True, is_idle=lambda: False), reqs=[req])
    for uses, expected in ((False, False), (True, False)):
        policy.uses = [uses]
        fake.hooks.around_forward(lambda *_: None, None, batch)
        assert fake.hooks._can_draft == {"r": expected}
    fake.hooks._can_draft.clear()
    for uses in (True, False):
        policy.uses = [uses]
        fake.hooks.around_forward(lambda *_: None, None, batch)
        assert fake.hooks._can_draft == {"r": True}, "a prompt that the draft began goes on with it"


def test_the_draft_does_not_propose_for_a_request_that_asks_for_no_speculation() -> None:
    fake, wish = FakeEngine(Recording(["draft-1"])), FakeSampling({"aurora": {"speculate": False}})
    batch = SimpleNamespace(forward_mode=SimpleNamespace(is_extend=lambda: True, is_idle=lambda: False))
    batch.reqs = [FakeRequest("plain"), FakeRequest("wishes", sampling_params=wish)]
    fake.hooks.around_forward(lambda *_: None, None, batch)
    assert fake.hooks._can_draft == {"plain": True, "wishes": False}


def test_without_control_every_round_is_sglangs_own() -> None:
    worker_hooks = FakeEngine(Recording(["draft-3"])).hooks
    worker_hooks._control = None
    calls: list[str] = []
    worker_hooks.around_forward(lambda *_: calls.append("forward"), None, None)
    worker_hooks.around_rule(lambda *_: calls.append("rule"), None, 1)
    worker_hooks.around_draft(lambda *_, **__: calls.append("draft"), None, None)
    worker_hooks.around_verify(lambda *_: calls.append("verify"), None, None)
    worker_hooks.around_prefill_extend(lambda *_: calls.append("prefill"), None, None, None, None)
    worker_hooks.around_extend(lambda *_: calls.append("extend"), None, None, None)
    worker_hooks.around_release(lambda *_, **__: calls.append("release"), None, None, checkpoint=True)
    worker_hooks.around_lengths(lambda *_: calls.append("lengths"), None)
    assert worker_hooks.around_cpu_lengths(lambda _: False, ()) is False
    assert calls == ["forward", "rule", "draft", "verify", "prefill", "extend", "release", "lengths"]


@pytest.mark.parametrize("key", [b"", b"the key of the traces"])
def test_lookup_shares_no_request_that_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bytes) -> None:
    monkeypatch.setattr(RankAgreement, "of_engine", lambda: RankAgreement(None, decides=True))
    graph = SimpleNamespace(cuda_graph_config=SimpleNamespace(decode=SimpleNamespace(bs=None)))
    schedule = SimpleNamespace(disable_overlap_schedule=True, graph=graph)
    context = SimpleNamespace(get_schedule=lambda: schedule, get_exec=lambda: schedule)
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)
    model = SimpleNamespace(vocab_size=5000)
    worker = SimpleNamespace(target_worker=SimpleNamespace(model_config=model))
    changes = {"state_folder": str(tmp_path), "lookup": LookupScope.SPECULATOR, "traffic_key": key.hex()}
    settings = SETTINGS.model_copy(update=changes)
    index = EngineControl(worker, settings).texts.index
    held_out = next(prompt for first in range(100, 999) if is_held_out(prompt_hash(prompt := [first, first + 1], key)))
    index.begin("b", [*held_out])
    index.extend("b", [4000])
    index.begin("c", [*held_out])
    assert index.propose("c", 1).tokens == ()

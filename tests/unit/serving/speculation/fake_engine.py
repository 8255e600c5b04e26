"""A scheduler and an EAGLE-3 worker in miniature, which call the hooks where SGLang calls them.

The target answers each request with a known text. The draft is right about half of the time. The engine knows which
positions the draft has processed, and fails a test as soon as the draft would start from a cache with a gap.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.engine.arms import Source
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.serving.pod_files import PodFolder
from aurora_runtime.serving.speculation import hooks
from aurora_runtime.serving.speculation.controller import FixedArms
from aurora_runtime.serving.speculation.engine import RankAgreement, lookup_chains
from aurora_runtime.serving.speculation.hooks import WorkerHooks
from aurora_runtime.serving.speculation.lookup import LookupIndex, RequestTexts
from aurora_runtime.serving.speculation.report import RoundReport
from aurora_runtime.serving.speculation.rounds import Decision, Outcome, RequestOutlook, Round, RoundObserver
from tests.unit.serving.speculation.fake_requests import FakeRequest

SETTINGS = SpeculationSettings(state_folder="/state", boot="b", draft_steps=3, lookup_steps=5, untrained_versions=(0,))
PROMPT_TOKENS = 4
VOCABULARY = 1009
UNTRAINED = "0"
"""The version of the draft that is not run."""
UNIQUE = 200
"""A period with which no text repeats itself."""
ARMS = ["off", "lookup-2", "lookup-5", "draft-1", "draft-3", "union-3"]


@dataclass
class RunningRequest(FakeRequest):
    """A request with what the device knows about it."""

    row: int = 0
    max_tokens: int = 12
    period: int = 9
    length: int = 0  # committed tokens in the target's KV cache
    drafted: int = -1  # positions that the draft has processed, without a gap. -1: it did not process the prompt

    def token(self, position: int) -> int:
        """The prompt, then the target's text: it repeats itself, so that lookup finds something."""
        return (self.row * 7 + position % self.period * 5) % VOCABULARY


class Recording(FixedArms):
    """Fixed arms that keep what they decide and observe, and park or leave out the draft on request.

    Attributes:
        parks: the rounds that follow each decision without another. 0: every round is decided.
        uses: whether the draft is in use, by the number of decisions. None: if any arm drafts.
        before_choice: called with the number of decisions so far before each decision.
        events: request ids of each observed round, and of each end of a request.
    """

    def __init__(self, names: Sequence[str], parks: int = 0, uses: Sequence[bool] | None = None) -> None:
        super().__init__(names)
        self.parks, self.uses = parks, uses
        self.decisions: list[Decision] = []
        self.observed: list[Outcome] = []
        self.events: list[tuple[str, ...]] = []
        self.served: list[str | None] = []
        self.parked = 0
        self.before_choice: Callable[[int], None] = lambda _: None

    def choose(self, outlooks: Sequence[RequestOutlook]) -> Decision:
        self.before_choice(len(self.decisions))
        decision = super().choose(outlooks)
        keeps = decision.keeps_draft and (decision.arm.drafts or self._in_use())
        self.decisions.append(
            Decision(decision.arm, decision.sources, keeps_draft=keeps, park_rounds=0 if keeps else self.parks)
        )
        return self.decisions[-1]

    def prefill_drafts(self) -> bool:
        return super().prefill_drafts() and self._in_use()

    def _in_use(self) -> bool:
        return self.uses is None or self.uses[len(self.decisions) % len(self.uses)]

    def observe(self, outcome: Outcome) -> None:
        self.events.append(tuple(outlook.rid for outlook in outcome.outlooks))
        self.observed.append(outcome)

    def round_parked(self, batch_size: int) -> None:
        self.parked += 1

    def draft_serves(self, version: str | None) -> None:
        self.served.append(version)
        super().draft_serves(version)

    def request_ended(self, rid: str) -> None:
        self.events.append((rid, "ended"))


def forward_mode(*, extend: bool) -> Any:
    return SimpleNamespace(is_extend=lambda: extend, is_idle=lambda: False)


class FakeEngine:
    """Runs requests to their end under hooks.

    Args:
        overlaps: whether results are processed after the next launch.
        retract_share: the share of rounds before which a request is retracted.
    """

    def __init__(self, policy: Recording, *, overlaps: bool = False, seed: int = 0, retract_share: float = 0.0) -> None:
        self.policy, self.overlaps, self.retract_share = policy, overlaps, retract_share
        self.report = RoundReport(PodFolder(Path("/state")), "b", policy)
        self.version = "1"
        self.hooks = WorkerHooks(
            SETTINGS,
            policy,
            self.report,
            refuse=pytest.fail,
            read_version=lambda: self.version,
        )
        control: Any = SimpleNamespace(
            ranks=RankAgreement(None, decides=True),
            texts=RequestTexts(LookupIndex(LookupScope.REQUEST, 1000)),
            overlaps=overlaps,
            results=None,
            activate=self._activate,
            worker=SimpleNamespace(_build_trivial_verify_input=self._bare_verify_input),
        )
        self.hooks._control = self.control = control
        self.hooks._observer = RoundObserver(self.hooks._observe, lambda rid: policy.request_ended(rid))
        self.random = random.Random(seed)  # noqa: S311 - no secret
        self.future_map = SimpleNamespace(needs_cpu_seq_lens=True)
        self.running: list[RunningRequest] = []
        self.waiting: list[RunningRequest] = []
        self.queue: deque[Any] = deque()
        self.steps = self.rounds = self.draft_prefills = self.draft_extends = self.without_lengths = 0

    def run(
        self,
        max_tokens: Sequence[int],
        *,
        prefix: str = "r",
        period: int = 9,
        prompt: int = PROMPT_TOKENS,
        wish: Mapping[str, Any] | None = None,
    ) -> list[RunningRequest]:
        requests = []
        for row, most in enumerate(max_tokens):
            req = RunningRequest(f"{prefix}{row}", [], row=row, max_tokens=most, period=period)
            req.origin_input_ids = [req.token(position) for position in range(prompt)]
            req.sampling_params.custom_params = {"aurora": wish} if wish else None
            requests.append(req)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hooks, "lookup_verify_input", self._lookup_verify_input)
            patch.setattr(hooks, "fill_draft_start", lambda *_: None)
            patch.setattr(hooks, "draft_input_without_draft", lambda *_: None)
            self.waiting = list(requests)
            while self.running or self.waiting or self.queue:
                retracted = self._retract()
                launched = self._prefill() if self.waiting else self._decode() if self.running else None
                if launched is not None:
                    self.queue.append(launched)
                while len(self.queue) > (1 if self.overlaps and launched is not None else 0):
                    self._process(*self.queue.popleft())
                self.waiting += retracted
        return requests

    def _activate(self, steps: int) -> None:
        self.steps = steps

    def _retract(self) -> list[RunningRequest]:
        """Take a request out of the engine, to be prefilled again: its KV cache is needed elsewhere."""
        if not self.running or self.random.random() >= self.retract_share:
            return []
        req = self.random.choice(self.running)
        req.is_retracted = True
        self._release(req)
        return [req]

    # the device ------------------------------------------------------------------------------------------------------

    def _prefill(self) -> Any:
        req = self.waiting.pop(0)
        req.is_retracted = False
        batch = SimpleNamespace(forward_mode=forward_mode(extend=True), is_extend_in_batch=True, reqs=[req])
        req.length, req.drafted = len(req.origin_input_ids) + len(req.output_ids), -1
        self.hooks.around_forward(self._forward_prefill, None, batch)
        self.running.append(req)
        return [req], [[req.token(req.length)]], None

    def _forward_prefill(self, _: Any, batch: Any) -> None:
        self.hooks.around_prefill_extend(self._draft_prefill, None, batch, None, None)

    def _draft_prefill(self, _: Any, batch: Any, *__: Any) -> None:
        self.draft_prefills += len(batch.reqs)
        for req in batch.reqs:
            req.drafted = req.length

    def _decode(self) -> Any:
        self.rounds += 1
        reqs = list(self.running)
        batch = SimpleNamespace(forward_mode=forward_mode(extend=False), is_extend_in_batch=False, reqs=reqs)
        self.hooks.around_lengths(self._resolve, self.future_map, batch)
        committed = self.hooks.around_forward(self._forward, None, batch)
        return reqs, committed, [len(tokens) - 1 for tokens in committed]

    def _resolve(self, future_map: Any, batch: Any) -> None:
        known = future_map.needs_cpu_seq_lens or not self.overlaps
        self.without_lengths += not known
        batch.seq_lens_cpu = torch.tensor([req.length for req in batch.reqs]) if known else None

    def _forward(self, worker: Any, batch: Any) -> list[list[int]]:
        self.hooks.around_rule(self._fail, worker, len(batch.reqs))
        if self.steps == 0:
            batch.spec_info = self._bare_verify_input(batch)
        else:
            batch.spec_info = self.hooks.around_draft(self._draft, None, batch)
        result = self.hooks.around_verify(self._verify, worker, batch)
        self.hooks.around_extend(self._extend, None, batch, result)
        committed = []
        for req, count in zip(batch.reqs, result.accept_lens.tolist(), strict=True):
            committed.append([req.token(req.length + 1 + i) for i in range(count)])
            req.length += count
        return committed

    def _bare_verify_input(self, batch: Any) -> Any:
        return SimpleNamespace(draft_token=self._roots(batch).view(-1))

    @staticmethod
    def _roots(batch: Any) -> torch.Tensor:
        return torch.tensor([[req.token(req.length)] for req in batch.reqs])

    def _draft(self, _: Any, batch: Any, *, with_topology: bool) -> Any:
        current = self.hooks._round
        assert current is not None
        assert not with_topology
        for req, source in zip(batch.reqs, current.decision.sources, strict=True):
            if source is Source.DRAFT:
                assert req.drafted == req.length, f"the draft of {req.rid} starts from a cache with a gap"
        chains = [self._guess(req) for req in batch.reqs]
        return SimpleNamespace(draft_token=torch.cat([self._roots(batch), torch.tensor(chains)], 1).view(-1))

    def _guess(self, req: RunningRequest) -> list[int]:
        wrong = self.random.randrange(2 * self.steps)
        return [(req.token(req.length + 1 + i) + (i == wrong)) % VOCABULARY for i in range(self.steps)]

    def _lookup_verify_input(self, _: Any, batch: Any, current: Round) -> Any:
        tokens = torch.cat([self._roots(batch), torch.tensor(lookup_chains(current))], 1)
        return SimpleNamespace(draft_token=tokens.view(-1))

    def _verify(self, _: Any, batch: Any) -> Any:
        nodes = batch.spec_info.draft_token.view(len(batch.reqs), self.steps + 1)
        assert nodes[:, 0].tolist() == self._roots(batch).flatten().tolist()
        tokens, lengths = torch.full(nodes.shape, -1, dtype=torch.int32), []
        for i, req in enumerate(batch.reqs):
            count = 0
            while True:
                tokens[i, count] = req.token(req.length + 1 + count)
                count += 1
                if count > self.steps or int(nodes[i, count]) != int(tokens[i, count - 1]):
                    break
            lengths.append(count)
        return SimpleNamespace(
            next_token_ids=tokens.view(-1),
            accept_lens=torch.tensor(lengths, dtype=torch.int32),
            next_draft_input=SimpleNamespace(),
        )

    def _extend(self, _: Any, batch: Any, result: Any) -> None:
        self.draft_extends += 1
        for req, count in zip(batch.reqs, result.accept_lens.tolist(), strict=True):
            if req.drafted == req.length:
                req.drafted += count

    # the scheduler ---------------------------------------------------------------------------------------------------

    def _process(self, reqs: Sequence[RunningRequest], committed: list[list[int]], accepted: list[int] | None) -> None:
        if accepted is not None:
            self.hooks.around_rule(self._fail, None, accepted, batch_size=len(reqs))
        for req, tokens in zip(reqs, committed, strict=True):
            if req.finished() or req.is_retracted or req not in self.running:
                continue
            req.output_ids += tokens
            if len(req.output_ids) >= req.max_tokens:
                req.ended, req.finished_len = True, req.max_tokens
                self._release(req)

    def _release(self, req: RunningRequest) -> None:
        self.running.remove(req)
        self.hooks.around_release(lambda *_, **__: None, req, None, checkpoint=True)

    @staticmethod
    def _fail(*_: Any, **__: Any) -> None:
        raise AssertionError("SGLang's own rule ran")

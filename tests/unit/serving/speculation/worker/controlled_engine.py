"""A miniature engine under hooks with fixed arms, in each way in which the host may learn a round's results."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.serving.pod_files import PodFolder
from aurora_runtime.serving.speculation.lookup_index import LookupIndex
from aurora_runtime.serving.speculation.outlook import Decision, RequestOutlook
from aurora_runtime.serving.speculation.worker import draft_progress, hooks
from aurora_runtime.serving.speculation.worker.draft_progress import DraftProgress
from aurora_runtime.serving.speculation.worker.hooks import WorkerHooks
from aurora_runtime.serving.speculation.worker.pending_tokens import BufferShape, PendingTokens
from aurora_runtime.serving.speculation.worker.policy import FixedArms
from aurora_runtime.serving.speculation.worker.rank_agreement import RankAgreement
from aurora_runtime.serving.speculation.worker.request_texts import RequestTexts
from aurora_runtime.serving.speculation.worker.round_report import RoundReport
from tests.unit.serving.speculation.worker.fake_engine import PROMPT_TOKENS, FakeEngine, RunningRequest

SETTINGS = SpeculationSettings(state_folder="/state", boot="b", draft_steps=3, lookup_steps=5)
ROWS = 4
BUFFER = BufferShape(ROWS, widest=6, width=1, dtype=torch.float32, request_tokens=15, page_tokens=3)
UNTRAINED = "0"
"""The version of the draft that is not run."""
ARMS = ["off", "lookup-2", "lookup-5", "draft-1", "draft-3", "union-3"]


class Schedule(Enum):
    """When the host knows a round's results."""

    IN_TURN = "before the next launch, without overlap scheduling"
    WAITS = "before the next launch, which waits for them"


class Recording(FixedArms):
    """Fixed arms that keep what they decide and observe.

    Attributes:
        known: how many rounds were observed before each decision.
        events: request ids of each observed round, and of each end of a request.
        made: the tokens that each answer took of each observed round.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.decisions: list[Decision] = []
        self.known: list[int] = []
        self.observed: list[tuple[Decision, Sequence[RequestOutlook], Sequence[int], float | None, Sequence[int]]] = []
        self.events: list[tuple[str, ...]] = []
        self.made: list[tuple[int, ...]] = []

    def choose(self, outlooks: Sequence[RequestOutlook]) -> Decision:
        self.known.append(len(self.observed))
        self.decisions.append(super().choose(outlooks))
        return self.decisions[-1]

    def observe(
        self,
        decision: Decision,
        outlooks: Sequence[RequestOutlook],
        accepted: Sequence[int],
        milliseconds: float | None,
        unplayed_lookup: Sequence[int] = (),
        tokens_made: Sequence[int] = (),
    ) -> None:
        self.events.append(tuple(outlook.rid for outlook in outlooks))
        self.made.append(tuple(tokens_made))
        self.observed.append((decision, outlooks, accepted, milliseconds, unplayed_lookup))

    def request_ended(self, rid: str) -> None:
        self.events.append((rid, "ended"))


class ControlledEngine:
    """A miniature engine under hooks with fixed arms. ``pages``: the pages of the buffer of pending tokens."""

    def __init__(
        self,
        arms: list[str],
        schedule: Schedule,
        *,
        seed: int = 0,
        retract_share: float = 0.0,
        pages: int | None = None,
    ) -> None:
        self.policy = Recording(arms)
        self.report = RoundReport(PodFolder(Path("/state")), "b", self.policy, longest=5)
        self.version = "1"
        self.hooks = WorkerHooks(
            SETTINGS,
            self.policy,
            self.report,
            refuse=pytest.fail,
            read_version=lambda: self.version,
            runs_draft=lambda version: version != UNTRAINED,
        )
        overlaps = schedule is not Schedule.IN_TURN
        self.engine = FakeEngine(
            self.hooks,
            overlaps,
            random.Random(seed),  # noqa: S311 - no secret
            retract_share,
        )
        budget = None if pages is None else pages * BUFFER.page_tokens * BUFFER.token_bytes
        self.buffer = PendingTokens(replace(BUFFER, budget_bytes=budget), "cpu")

        control: Any = SimpleNamespace(
            worker=None,
            draft_worker=SimpleNamespace(device="cpu"),
            ranks=RankAgreement(None, 0, decides=True),
            progress=DraftProgress(self.buffer, single_rank=True),
            texts=RequestTexts(LookupIndex(LookupScope.REQUEST, 1000)),
            overlaps=overlaps,
            results=None,
            activate=self.engine.activate,
        )
        self.hooks._control = self.control = control

    def run(self, lengths: list[int], *, speculate: bool = True) -> list[RunningRequest]:
        requests = []
        for row, length in enumerate(lengths):
            req = RunningRequest(f"r{row}", [], row=row, max_tokens=length)
            req.sampling_params.custom_params = {"aurora": {"speculate": speculate}}
            req.origin_input_ids = [req.token(position) for position in range(PROMPT_TOKENS)]
            requests.append(req)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(draft_progress, "catch_up", self.engine.catch_up)
            patch.setattr(draft_progress, "draft_contexts", lambda _: contextlib.nullcontext())
            patch.setattr(hooks, "lookup_verify_input", self.engine.lookup_verify_input)
            patch.setattr(hooks, "fill_draft_start", lambda *_: None)
            patch.setattr(hooks, "draft_input_without_draft", lambda *_: None)
            self.engine.run(requests)
        return requests

"""Stand-ins for SGLang's requests and rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from aurora_runtime.engine.arms import Arm, Source
from aurora_runtime.serving.speculation.lookup import Proposal
from aurora_runtime.serving.speculation.rounds import Decision, RequestOutlook, Round


@dataclass
class FakeSampling:
    """What the worker reads of SGLang's sampling parameters."""

    custom_params: Any = None


@dataclass
class FakeRequest:
    """What the worker reads of SGLang's request."""

    rid: str
    origin_input_ids: list[int] = field(default_factory=lambda: [1, 2, 3])
    output_ids: list[int] = field(default_factory=list)
    ended: bool = False
    is_retracted: bool = False
    finished_len: int | None = None  # tokens of the answer up to its stop, once that is known
    sampling_params: FakeSampling = field(default_factory=FakeSampling)

    def finished(self) -> bool:
        return self.ended


def a_round(
    reqs: Sequence[FakeRequest],
    arm: Arm,
    *,
    sources: Sequence[Source] | None = None,
    proposals: Sequence[Proposal] | None = None,
    lengths: Sequence[int] | None = None,
    explores: bool = False,
    keeps_draft: bool = False,
    began: float = 0.0,
) -> Round:
    """A round of ``reqs``. By default the draft proposes if the arm drafts, and lookup otherwise."""
    source = Source.DRAFT if arm.drafts else Source.LOOKUP if arm.steps else Source.NONE
    return Round(
        Decision(arm, tuple(sources or [source] * len(reqs)), explores, keeps_draft or arm.drafts),
        tuple(RequestOutlook(req.rid, 0, 0, True) for req in reqs),
        tuple(proposals or [Proposal()] * len(reqs)),
        tuple(reqs),
        tuple(lengths or [10] * len(reqs)),
        began,
    )

"""Logs each round that the controller of a served pod decided: what it expected, and what came of it.

The log is written by an SGLang plugin of its own (``round_log_plugin.py``), which wraps the controller in the engine's
process. So the product has no switch for it. A file holds one JSON object a line: first the arms, then each round. The
scheduler writes each line itself, so a logged run is no measurement of speed.

Invariant: a round's estimates are those of its own choice. A round whose choice is not known has none.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from aurora_runtime.engine.arms import Arm
from aurora_runtime.serving.speculation.outlook import Decision, RequestOutlook
from aurora_runtime.sglang_uses import Hook, HookKind

CHOICES_KEPT: Final = 4
"""Choices whose rounds may still be under way."""
_CONTROLLER: Final = "aurora_runtime.serving.speculation.controller.Controller"


@dataclass(frozen=True)
class LoggedRequest:
    """One request of a round.

    Attributes:
        match: length of lookup's match, in tokens.
        length: tokens that lookup could propose.
        pending: tokens by which the draft was behind.
        accepted: accepted proposed tokens, without the bonus token.
        lookup_right: tokens of lookup that are the round's tokens, whether lookup was the source or not.
    """

    rid: str
    match: int
    length: int
    pending: int
    source: str
    accepted: int
    lookup_right: int


@dataclass(frozen=True)
class Estimates:
    """The controller's estimates at its choice, for each arm of the log.

    Attributes:
        tokens: of the whole batch, bonus tokens included.
        milliseconds: of the round, with its share of the draft's catch-up.
        best: index of the arm that seemed best. A round that explores has another arm.
    """

    tokens: tuple[float, ...]
    milliseconds: tuple[float, ...]
    best: int


@dataclass(frozen=True)
class LoggedRound:
    """One round.

    Attributes:
        at: seconds since 1970 when the round was observed.
        milliseconds: None for a time that cannot be compared, for example because a prefill was in between.
    """

    at: float
    arm: str
    explores: bool
    milliseconds: float | None
    requests: tuple[LoggedRequest, ...]
    estimates: Estimates | None

    @property
    def tokens(self) -> int:
        """Tokens that the round made, bonus tokens included."""
        return len(self.requests) + sum(request.accepted for request in self.requests)

    @property
    def catches_up(self) -> bool:
        """Whether the draft processed tokens of earlier rounds first."""
        return self.arm.startswith("draft") and any(request.pending > 0 for request in self.requests)


@dataclass(frozen=True)
class LoggedRounds:
    """A file: the names of the arms in the order of the estimates, and the rounds."""

    arms: tuple[str, ...]
    rounds: tuple[LoggedRound, ...]

    @classmethod
    def read(cls, file: Path) -> LoggedRounds:
        first, *rest = file.read_text().splitlines()
        return cls(tuple(json.loads(first)["arms"]), tuple(_round(json.loads(line)) for line in rest))


def _round(entry: dict[str, Any]) -> LoggedRound:
    requests = tuple(LoggedRequest(*values) for values in entry.pop("requests"))
    estimates = entry.pop("estimates")
    if estimates is not None:
        tokens, milliseconds, best = estimates
        estimates = Estimates(tuple(tokens), tuple(milliseconds), best)
    return LoggedRound(**entry, requests=requests, estimates=estimates)


class RoundLog:
    """Writes a file. The process that decides rounds opens the file at its first choice."""

    def __init__(self, file: Path, arms: Sequence[Arm], clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._arms = [arm.name for arm in sorted(set(arms))]
        self._clock = clock
        self._sink: TextIO | None = None
        self._estimates: Estimates | None = None
        self._choices: deque[tuple[Sequence[RequestOutlook], Estimates | None]] = deque(maxlen=CHOICES_KEPT)

    def hooks(self) -> tuple[Hook, ...]:
        """The hooks that the plugin registers with SGLang."""
        return (
            Hook(f"{_CONTROLLER}.choose", self.around_choose, HookKind.AROUND),
            Hook(f"{_CONTROLLER}._best", self.around_best, HookKind.AROUND),
            Hook(f"{_CONTROLLER}.observe", self.around_observe, HookKind.AROUND),
        )

    def close(self) -> None:
        """End the log. A log in an engine ends with the process."""
        if self._sink is not None:
            self._sink.close()

    def around_choose(self, original: Callable[..., Decision], controller: Any, outlooks: Any) -> Decision:
        """Around ``Controller.choose``: remembers the choice until its round is observed."""
        if self._sink is None:
            self._sink = self._file.open("w", buffering=1)  # a line is written at once, because servers are killed
            self._sink.write(json.dumps({"arms": self._arms}) + "\n")
        self._estimates = None
        decision = original(controller, outlooks)
        self._choices.append((outlooks, self._estimates))
        return decision

    def around_best(self, original: Callable[..., int], controller: Any, tokens: Any, costs: Any) -> int:
        """Around ``Controller._best``: the estimates of all arms pass here."""
        best = original(controller, tokens, costs)
        self._estimates = Estimates(tuple(tokens), tuple(costs), best)
        return best

    def around_observe(
        self,
        original: Callable[..., None],
        controller: Any,
        decision: Any,
        outlooks: Any,
        accepted: Any,
        milliseconds: Any,
        unplayed_lookup: Any = (),
        tokens_made: Any = (),
    ) -> None:
        """Around ``Controller.observe``: writes the round."""
        original(controller, decision, outlooks, accepted, milliseconds, unplayed_lookup, tokens_made)
        if self._sink is None or not outlooks:
            return
        estimates = next((found for chosen, found in self._choices if chosen is outlooks), None)
        right = unplayed_lookup or (0,) * len(outlooks)
        requests = [
            (o.rid, o.lookup_match, o.lookup_length, o.pending, source.value, count, matching)
            for o, source, count, matching in zip(outlooks, decision.sources, accepted, right, strict=True)
        ]
        entry = {
            "at": self._clock(),
            "arm": decision.arm.name,
            "explores": decision.explores,
            "milliseconds": milliseconds,
            "requests": requests,
            "estimates": None if estimates is None else dataclasses.astuple(estimates),
        }
        self._sink.write(json.dumps(entry, separators=(",", ":")) + "\n")

"""Recorded rounds: what lookup and the draft would have got right after every token of recorded answers.

With them any policy can be replayed without a model. A file is one JSON object::

    {"description": "…", "requests": [
        {"domain": "json", "prompt_tokens": 57,
         "lookup_match": [0, 3, …], "lookup_length": [0, 11, …], "lookup_right": [0, 5, …], "draft_right": [2, 1, …]}]}

The lists have one entry per answer token but the last. Entry ``p`` belongs to a round whose last known token is answer
token ``p``. ``lookup_match`` is the length of the matched suffix, ``lookup_length`` the number of tokens that lookup
proposes, ``lookup_right`` how many of them are the answer's next tokens, and ``draft_right`` the same of the chain of
a draft whose KV cache is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RECORDING: Final = Path(__file__).with_name("recorded.json")
"""The recording of the repository. ``tests.bench.speculation.record`` of commit cea65515 made it."""


@dataclass(frozen=True)
class RecordedRequest:
    """One answer. All tuples have a value for each place at which a round can begin."""

    domain: str
    prompt_tokens: int
    lookup_match: tuple[int, ...]
    lookup_length: tuple[int, ...]
    lookup_right: tuple[int, ...]
    draft_right: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = {len(v) for v in (self.lookup_match, self.lookup_length, self.lookup_right, self.draft_right)}
        if len(lengths) != 1:
            raise ValueError(f"a recorded request has lists of {sorted(lengths)} places")

    @property
    def places(self) -> int:
        return len(self.draft_right)


@dataclass(frozen=True)
class RecordedRounds:
    """Recorded answers of one or more domains."""

    description: str
    requests: tuple[RecordedRequest, ...]

    def traffics(self, count: int) -> dict[str, list[RecordedRequest]]:
        """``count`` requests of each domain, and as many of all domains in turn under the name ``mixed``.

        The requests begin again at their end.
        """
        by_domain = dict[str, list[RecordedRequest]]()
        for request in self.requests:
            by_domain.setdefault(request.domain, []).append(request)
        mixed = [request for turn in zip(*by_domain.values(), strict=False) for request in turn]
        return {name: repeated(own, count) for name, own in {**by_domain, "mixed": mixed}.items()}

    @classmethod
    def read(cls, file: Path) -> RecordedRounds:
        content = json.loads(file.read_text())
        return cls(content["description"], tuple(_request(entry) for entry in content["requests"]))


def _request(entry: dict[str, object]) -> RecordedRequest:
    return RecordedRequest(**{key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()})  # type: ignore[arg-type]


def repeated(requests: Sequence[RecordedRequest], count: int) -> list[RecordedRequest]:
    """``count`` requests: ``requests``, from the start again until there are enough."""
    return [requests[i % len(requests)] for i in range(count)]

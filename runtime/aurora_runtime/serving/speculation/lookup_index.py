"""Proposes what followed the last tokens of a request when they occurred before: prompt lookup on the host.

Text that is copied or repeated needs no draft model: the best guess for the next tokens is what followed the same
tokens the last time. This module neither imports torch nor reads a clock.

Invariants:
- The first tokens of a proposal followed the matched suffix in a text that is kept. A running request's text may end
  before the proposal is full. The proposal then goes on with that request's own lookup, if a suffix at least as long
  was found there. A proposal ends with the text of a request that ended.
- With the scope Request no proposal ever depends on the tokens of another request, with the scope Off there is none.
- No proposal comes from a request that may not be shared, or from one of another tenant, except for this request
  itself.
- The same calls give the same proposals in every process, because tensor-parallel ranks each have an index.
- An evicted text never comes back, because its number is not used again.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.serving.speculation.suffix_table import Slots, SuffixTable

SUFFIX_LENGTHS: Final = (1, 2, 3, 5, 8)
"""The lengths of suffixes that are looked up, the longest first. More lengths gained less than 1%."""

LONGEST_MATCH: Final = 32
"""A match longer than this counts as this long."""

TOKENS_PER_MATCH: Final = 2
"""Tokens of a proposal for each token that matched. What follows a short match is seldom right for long."""

SLOTS_PER_TOKEN: Final = 2
"""Slots of the table for each kept token and suffix length: 80 bytes a token. Four times as many found 1% more."""

_POSITION_BITS: Final = 28
_POSITION_MASK: Final = (1 << _POSITION_BITS) - 1
_SHARED: Final = 0
"""The space of requests without a tenant. Spaces of texts have positive numbers, those of tenants negative ones."""


@dataclass(frozen=True)
class Proposal:
    """Proposed tokens, none when nothing matched, and how many of the request's last tokens matched."""

    tokens: tuple[int, ...] = ()
    match_length: int = 0


_NOTHING: Final = Proposal()


@dataclass(eq=False)
class _Text:
    """A request's prompt and answer.

    Attributes:
        number: unique and never 0, so that a place is never 0.
        shared: whether other requests of its tenant may be answered from it.
        tenant: the number of its tenant's space.
        salts: of the spaces of the table in which its suffixes are put.
        salts_to_read: of the spaces from which the request may be answered.
        slots: where the suffixes of its end are looked up. None: not computed since it grew. The suffixes that are
            looked up before a token are those that the token follows. So a request that is answered from the spaces in
            which it is put needs no other slots.
        ended: whether its request left the engine.
    """

    number: int
    tokens: array[int]
    shared: bool
    tenant: int
    salts: tuple[int, ...]
    salts_to_read: tuple[int, ...]
    slots: Slots | None = None
    ended: bool = False

    @property
    def first_place(self) -> int:
        return self.number << _POSITION_BITS


class LookupIndex:
    """The texts of this process's requests and where their suffixes occurred.

    ``max_tokens`` bounds the tokens that are kept. Running requests are always kept, because the engine's KV cache
    bounds them. Ended requests are kept with the scope Speculator only, and evicted whole, the oldest first.
    ``vocabulary_size`` ends a proposal before a token that the target cannot embed (SGLang replaces the placeholders
    of images in a prompt by such numbers). ``shares`` says of a prompt whether other requests may be answered from its
    request, with the scope Speculator. It is called once for each request.

    A request that was never begun has no text: :meth:`extend` and :meth:`end` do nothing for it, and :meth:`propose`
    proposes nothing.
    """

    def __init__(
        self,
        scope: LookupScope,
        max_tokens: int,
        *,
        vocabulary_size: int | None = None,
        shares: Callable[[Sequence[int]], bool] = lambda prompt: True,
    ) -> None:
        if max_tokens < 1:
            raise ValueError("max_tokens must be positive")
        self._scope: Final = scope
        self._max_tokens: Final = max_tokens
        self._vocabulary_size: Final = vocabulary_size
        self._shares: Final = shares
        slots = 1 << max(4, (max_tokens * SLOTS_PER_TOKEN - 1).bit_length())
        self._table: Final = SuffixTable(SUFFIX_LENGTHS, 2 if scope is LookupScope.OFF else slots)
        self._running: Final[dict[str, _Text]] = {}
        self._texts: Final[dict[int, _Text]] = {}
        self._ended: Final[deque[_Text]] = deque()
        self._last_number = 0
        self._tokens = 0

    @property
    def keeps_ended(self) -> bool:
        """Whether texts of ended requests are kept at all."""
        return self._scope is LookupScope.SPECULATOR

    @property
    def tokens(self) -> int:
        """Tokens of all texts that are kept."""
        return self._tokens

    def begin(self, rid: str, prompt: Sequence[int], *, may_share: bool = True, tenant: str = "") -> None:
        """Start a request with its prompt. A request that was begun before starts afresh.

        Unless the request ``may_share``, no other request is answered from it. Otherwise those of its ``tenant`` are.
        """
        if self._scope is LookupScope.OFF:
            return
        if known := self._running.pop(rid, None):
            self._forget(known)
        shared = self._scope is LookupScope.SPECULATOR and may_share and self._shares(prompt)
        text = self._add(prompt, shared=shared, tenant=_space_of(tenant))
        self._running[rid] = text
        self._evict()

    def extend(self, rid: str, tokens: Sequence[int]) -> None:
        """Append tokens that the target committed."""
        if (text := self._running.get(rid)) is None:
            return
        table, known, first_place = self._table, text.tokens, text.first_place
        for token in tokens:
            end = len(known)
            slots = text.slots if text.salts == text.salts_to_read else None
            table.put(slots or table.slots_of(known, end, text.salts), first_place + end)
            known.append(token)
            text.slots = None
        self._tokens += len(tokens)

    def end(self, rid: str) -> None:
        """Stop a request. A text that is shared remains for other requests."""
        if (text := self._running.pop(rid, None)) is None:
            return
        if not text.shared:
            self._forget(text)
            return
        text.ended = True  # and will not grow any more
        self._ended.append(text)
        self._evict()

    def propose(self, rid: str, count: int) -> Proposal:
        """At most ``count`` tokens. The first of them followed the longest suffix of the request that occurred before.

        A match of few tokens gives few tokens. The latest occurrence is taken. Of equally long matches the request's
        own text goes before the others'.
        """
        if (text := self._running.get(rid)) is None or count < 1 or (match := self._latest(text)) is None:
            return _NOTHING
        source, position, order = match
        length = _match_length(text.tokens, source.tokens, position, order)
        tokens = self._continuation(text, *match, min(count, TOKENS_PER_MATCH * length))
        if self._vocabulary_size is not None:
            for index, token in enumerate(tokens):
                if not 0 <= token < self._vocabulary_size:
                    del tokens[index:]
                    break
        if not tokens:
            return _NOTHING
        return Proposal(tuple(tokens), length)

    def _add(self, tokens: Sequence[int], *, shared: bool, tenant: int) -> _Text:
        self._last_number += 1
        number = self._last_number
        spaces = (number, tenant) if shared else (number,)
        readable = (number, tenant) if self._scope is LookupScope.SPECULATOR else (number,)
        salts, salts_to_read = self._table.salts_of(spaces), self._table.salts_of(readable)
        text = self._texts[number] = _Text(number, array("q", tokens), shared, tenant, salts, salts_to_read)
        self._tokens += len(tokens)
        self._table.put_range(text.tokens, 1, len(tokens), spaces, text.first_place)
        return text

    def _latest(self, text: _Text) -> tuple[_Text, int, int] | None:
        """Text, position and length of the latest occurrence of the longest suffix of ``text`` that occurred before."""
        if text.slots is None:
            text.slots = self._table.slots_of(text.tokens, len(text.tokens), text.salts_to_read)
        for order, place in self._table.find(text.slots):
            if found := self._occurrence(text, order, place):
                return *found, order
        return None

    def _occurrence(self, text: _Text, order: int, place: int) -> tuple[_Text, int] | None:
        """The text and position of ``place``, if the last ``order`` tokens of ``text`` really stand before it."""
        source = self._texts.get(place >> _POSITION_BITS)
        if source is None:
            return None
        readable = self._scope is LookupScope.SPECULATOR and source.shared and source.tenant == text.tenant
        if source is not text and not readable:
            return None  # two spaces of the table may meet in one slot
        position = place & _POSITION_MASK
        end = len(text.tokens)
        if source.tokens[position - order : position] != text.tokens[end - order : end]:
            return None
        return source, position

    def _continuation(self, text: _Text, source: _Text, position: int, order: int, count: int) -> list[int]:
        """At most ``count`` tokens from ``position`` of ``source`` on, and then what lookup proposes to ``source``.

        The ``order`` tokens before ``position`` equal the end of ``text``. Similar requests that run together are a few
        tokens apart, so the latest occurrence is often near the end of another request. A suffix shorter than ``order``
        ends the proposal, because its tokens are less likely to be right.
        """
        reader, tokens = text, source.tokens[position : position + count].tolist()
        while len(tokens) < count:
            if source is reader:  # a repetition: what follows the end of the text is the proposal itself
                period = len(reader.tokens) - position
                tokens += [tokens[i % period - period] for i in range(count - len(tokens))]
            elif source.ended or (match := self._latest(source)) is None or match[2] < order:
                break
            else:
                reader, (source, position, _) = source, match
                tokens += source.tokens[position : position + count - len(tokens)]
        return tokens

    def _evict(self) -> None:
        while self._tokens > self._max_tokens and self._ended:
            self._forget(self._ended.popleft())

    def _forget(self, text: _Text) -> None:
        del self._texts[text.number]
        self._tokens -= len(text.tokens)


def _space_of(tenant: str) -> int:
    """The number of a tenant's space, the same on all tensor-parallel ranks."""
    return -1 - int.from_bytes(hashlib.sha256(tenant.encode()).digest()[:8]) if tenant else _SHARED


def _match_length(tokens: array[int], source: array[int], position: int, known: int) -> int:
    """How many tokens before ``position`` equal the end of ``tokens``, at least ``known`` and at most LONGEST_MATCH."""
    end = len(tokens)
    length, limit = known, min(position, end, LONGEST_MATCH)
    while length < limit and source[position - 1 - length] == tokens[end - 1 - length]:
        length += 1
    return length

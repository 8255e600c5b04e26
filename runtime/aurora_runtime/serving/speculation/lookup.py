"""Proposes what followed the last tokens of a request when they occurred before: prompt lookup on the host.

Text that is copied or repeated needs no draft model: the best guess for the next tokens is what followed the same
tokens the last time. :class:`SuffixTable` says where suffixes occurred, :class:`LookupIndex` keeps the texts, and
:class:`RequestTexts` feeds it with SGLang's requests. This module imports neither torch nor SGLang, and reads no clock.

Invariants:
- The first tokens of a proposal followed the matched suffix in a text that is kept. A running request's text may end
  before the proposal is full. The proposal then goes on with that request's own lookup, if a suffix at least as long
  was found there. A proposal ends with the text of a request that ended.
- With the scope Request no proposal ever depends on the tokens of another request, with the scope Off there is none.
- No proposal comes from a request that may not be shared, or from one of another tenant, except for this request
  itself.
- The same calls give the same proposals in every process, because tensor-parallel ranks each have an index.
- An evicted text never comes back, because its number is not used again.
- Lookup's text of a request is its prompt and its committed tokens, no token twice. A request whose last tokens are not
  known on the host gets no proposal. A request that left the engine leaves only what is shared.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.request_wish import wish_of

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
Slots = list[tuple[int, int]]
"""``(order, slot)`` of the suffixes of a text. The longest suffix comes first, and its slot for the first salt."""
_MASK: Final = (1 << 64) - 1


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


class SuffixTable:
    """Where the last tokens of a text occurred, for suffix lengths ``orders`` (ascending).

    A slot holds the latest place only, and a later suffix with the same hash overwrites it. So the table has a fixed
    size (``slots`` a length, a power of two), and an insertion a fixed cost. The table never compares tokens: a place
    is a hint, which the reader checks against the text. A place is a positive number that the caller chooses. A
    ``space`` keeps the suffixes of one reader apart from others in the same table.

    The hash of m tokens is ``sum(a[k] * token[k]) mod 2**64`` with odd multipliers, and its slot the upper bits of that
    sum (multiply-shift hashing, Dietzfelbinger). The sum for a longer suffix continues the sum of a shorter one.
    """

    def __init__(self, orders: Sequence[int], slots: int) -> None:
        self._longest: Final = orders[-1]
        self._shift: Final = 65 - slots.bit_length()
        numbers = random.Random(2)  # noqa: S311 - no secret, and the same on all ranks
        *multipliers, self._space_multiplier = (numbers.getrandbits(64) | 1 for _ in range(self._longest + 1))
        starts = {order: row * slots for row, order in enumerate(orders)}
        self._steps: Final = [(order, a, starts.get(order)) for order, a in enumerate(multipliers, start=1)]
        self._array: NDArray[np.int64] = np.zeros(len(orders) * slots, dtype=np.int64)
        self.places: Final = self._array.data
        """The latest place that was put into each slot. 0: none."""

    def slots_of(self, tokens: array[int], end: int, salts: Sequence[int]) -> Slots:
        """The slots of all suffixes of ``tokens[:end]`` that the text is long enough for, one for each salt."""
        total, found, shift, last_salt_first = 0, [], self._shift, salts[::-1]
        for order, multiplier, start in self._steps[:end]:
            total += multiplier * tokens[end - order]
            if start is not None:
                for salt in last_salt_first:
                    slot = start + (((total + salt) & _MASK) >> shift)
                    found.append((order, slot))
        found.reverse()
        return found

    def salts_of(self, spaces: Sequence[int]) -> tuple[int, ...]:
        """What tells the suffixes of these spaces from those of others."""
        return tuple(space * self._space_multiplier & _MASK for space in spaces)

    def put(self, slots: Slots, place: int) -> None:
        """Note that the suffixes of these slots occurred, and that ``place`` followed them."""
        places = self.places
        for _, slot in slots:
            places[slot] = place

    def put_range(self, tokens: array[int], first: int, last: int, spaces: Sequence[int], place: int) -> None:
        """The same as :meth:`put` of ``place + end`` for each ``end`` from ``first`` to ``last - 1``.

        Vectorised, for prompts.
        """
        count = last - first
        if count <= 0:
            return
        window = np.array(tokens[max(0, first - self._longest) : last - 1], dtype=np.int64).view(np.uint64)
        missing = max(0, self._longest - first)
        window = np.concatenate([np.zeros(missing, dtype=np.uint64), window])
        salts = np.array([(space * self._space_multiplier) & _MASK for space in spaces], dtype=np.uint64)
        places = np.arange(place + first, place + last, dtype=np.int64).repeat(len(spaces))
        total = np.zeros(count, dtype=np.uint64)
        for order, multiplier, start in self._steps:
            total += window[self._longest - order :][:count] * np.uint64(multiplier)
            if start is not None:
                skipped = max(0, order - first)  # the text is too short for this order before
                slots = ((total[skipped:, None] + salts) >> np.uint64(self._shift)).astype(np.int64) + start
                # In the order of put(): where two spaces share a slot, the later place stays.
                self._array[slots.reshape(-1)] = places[skipped * len(spaces) :]


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
        self.tokens = 0
        """Tokens of all texts that are kept."""

    @property
    def keeps_ended(self) -> bool:
        """Whether texts of ended requests are kept at all."""
        return self._scope is LookupScope.SPECULATOR

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
        self.tokens += len(tokens)

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
        self.tokens += len(tokens)
        self._table.put_range(text.tokens, 1, len(tokens), spaces, text.first_place)
        return text

    def _latest(self, text: _Text) -> tuple[_Text, int, int] | None:
        """Text, position and length of the latest occurrence of the longest suffix of ``text`` that occurred before."""
        if text.slots is None:
            text.slots = self._table.slots_of(text.tokens, len(text.tokens), text.salts_to_read)
        places = self._table.places
        for order, slot in text.slots:
            if (place := places[slot]) and (found := self._occurrence(text, order, place)):
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
        while self.tokens > self._max_tokens and self._ended:
            self._forget(self._ended.popleft())

    def _forget(self, text: _Text) -> None:
        del self._texts[text.number]
        self.tokens -= len(text.tokens)


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


@dataclass
class RequestTexts:
    """The texts of all running requests, by request id."""

    index: LookupIndex
    _indexed: dict[str, int] = field(default_factory=dict)  # answer tokens that lookup has

    def proposals(
        self, reqs: Sequence[Any], lengths: Sequence[int], recent: Sequence[Sequence[int]], tokens: int
    ) -> tuple[Proposal, ...]:
        """Add the tokens that were committed since, and ask lookup for at most ``tokens`` tokens of each request.

        Args:
            lengths: tokens of each request in the target's KV cache: all but the last committed token.
            recent: tokens of each request's last round, which the request itself may lack under overlap scheduling.
        """
        return tuple(
            self.index.propose(req.rid, tokens)
            if self._add_committed(req, length, last) and wish_of(req).speculate
            else _NOTHING
            for req, length, last in zip(reqs, lengths, recent, strict=True)
        )

    def match_lengths(self, reqs: Sequence[Any]) -> list[int]:
        """How long lookup's match is for each request, in the tokens that the request has by now."""
        lengths = []
        for req in reqs:
            self._add_committed(req, 0, ())
            lengths.append(self.index.propose(req.rid, 1).match_length if wish_of(req).speculate else 0)
        return lengths

    def ended(self, req: Any) -> None:
        """The request left the engine: it finished, was aborted, or will be prefilled again after a retraction.

        One that was only in rounds without lookup is indexed now, if others may be answered from it.
        """
        if req.rid in self._indexed or (self.index.keeps_ended and wish_of(req).is_shared):
            self._add_committed(req, 0, ())
        self._indexed.pop(req.rid, None)
        self.index.end(req.rid)

    def _add_committed(self, req: Any, length: int, recent: Sequence[int]) -> bool:
        """Whether lookup now has all committed tokens of the request."""
        indexed = self._indexed.get(req.rid)
        if indexed is None:
            wish = wish_of(req)
            self.index.begin(req.rid, req.origin_input_ids, may_share=wish.is_shared, tenant=wish.tenant)
            indexed = 0
        new = list(req.output_ids[indexed:])
        missing = length + 1 - len(req.origin_input_ids) - indexed - len(new)
        if 0 < missing <= len(recent):
            new += recent[-missing:]
            missing = 0
        self.index.extend(req.rid, new)
        self._indexed[req.rid] = indexed + len(new)
        return missing <= 0

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.serving.speculation.lookup import (
    LONGEST_MATCH,
    SUFFIX_LENGTHS,
    TOKENS_PER_MATCH,
    LookupIndex,
    Proposal,
    SuffixTable,
)
from tests.example_count import example_count

NOTHING = Proposal()
texts = st.lists(st.integers(0, 3), max_size=60)


def naive_own_proposal(tokens: list[int], count: int) -> Proposal:
    """The latest earlier occurrence of the longest suffix, found by trying every place."""
    end = len(tokens)
    for order in reversed(SUFFIX_LENGTHS):
        for position in range(end - 1, order - 1, -1):
            if tokens[position - order : position] == tokens[end - order :]:
                proposed, match = list(tokens), common_suffix(tokens, tokens[:position])
                for source in range(position, position + min(count, TOKENS_PER_MATCH * match)):
                    proposed.append(proposed[source])
                return Proposal(tuple(proposed[end:]), match)
    return NOTHING


def common_suffix(one: list[int], other: list[int]) -> int:
    length = 0
    while length < min(len(one), len(other), LONGEST_MATCH) and one[-1 - length] == other[-1 - length]:
        length += 1
    return length


@given(texts, st.lists(texts, max_size=5), st.integers(1, 20))
def test_a_request_is_looked_up_in_itself_as_by_trying_every_place(
    prompt: list[int], answer: list[list[int]], count: int
) -> None:
    index = LookupIndex(LookupScope.REQUEST, 1 << 18)  # so many slots that hashes do not collide
    index.begin("a", prompt)
    tokens = list(prompt)
    for part in answer:
        index.extend("a", part)
        tokens += part
    assert index.propose("a", count) == naive_own_proposal(tokens, count)


@dataclass
class Naive:
    """All texts, and which of them other requests may see."""

    running: dict[str, list[int]] = field(default_factory=dict)
    ended: list[list[int]] = field(default_factory=list)

    def tokens(self) -> int:
        return sum(map(len, self.ended)) + sum(map(len, self.running.values()))


class SpeculatorScope(RuleBasedStateMachine):
    """Random requests of one speculator against the plain record of their texts."""

    MAX_TOKENS = 200

    def __init__(self) -> None:
        super().__init__()
        self.index = LookupIndex(LookupScope.SPECULATOR, self.MAX_TOKENS, vocabulary_size=3)
        self.naive = Naive()

    def evict(self) -> None:
        while self.naive.ended and self.naive.tokens() > self.MAX_TOKENS:
            self.naive.ended.pop(0)

    @rule(rid=st.sampled_from("abc"), prompt=texts)
    def begin(self, rid: str, prompt: list[int]) -> None:
        self.index.begin(rid, prompt)
        self.naive.running[rid] = list(prompt)
        self.evict()

    @rule(rid=st.sampled_from("abc"), tokens=texts)
    def extend(self, rid: str, tokens: list[int]) -> None:
        self.index.extend(rid, tokens)
        if rid in self.naive.running:
            self.naive.running[rid] += tokens

    @rule(rid=st.sampled_from("abc"))
    def end(self, rid: str) -> None:
        self.index.end(rid)
        if rid in self.naive.running:
            self.naive.ended.append(self.naive.running.pop(rid))
            self.evict()

    @invariant()
    def the_same_tokens_are_kept(self) -> None:
        assert self.index.tokens == self.naive.tokens()

    @invariant()
    def a_proposal_continues_a_kept_text(self) -> None:
        for rid, own in self.naive.running.items():
            proposal = self.index.propose(rid, 5)
            if proposal == NOTHING:
                continue
            assert len(proposal.tokens) <= 5
            assert all(0 <= token < 3 for token in proposal.tokens)
            assert self.follows(own, proposal.match_length, list(proposal.tokens))

    def follows(self, own: list[int], matching: int, proposed: list[int]) -> bool:
        """Whether ``proposed`` followed the last ``matching`` tokens of ``own`` in a text.

        Behind the end of a running text, the rest must have followed the last tokens of that text.
        """
        matched, ended = own[len(own) - matching :], len(self.naive.ended)
        for number, text in enumerate([*self.naive.ended, *self.naive.running.values()]):
            for place in range(matching, len(text)):
                if text[place - matching : place] != matched:
                    continue
                offered = (text[place:] + proposed if text is own else text[place:])[: len(proposed)]
                rest = proposed[len(offered) :]
                if offered == proposed[: len(offered)] and (
                    not rest or (number >= ended and self.follows(text, 1, rest))
                ):
                    return True
        return False


TestSpeculatorScope = SpeculatorScope.TestCase
TestSpeculatorScope.settings = settings(max_examples=example_count(40), stateful_step_count=20)


@given(texts, texts, st.integers(1, 8))
def test_with_scope_request_other_requests_change_nothing(mine: list[int], other: list[int], count: int) -> None:
    alone, beside = LookupIndex(LookupScope.REQUEST, 500), LookupIndex(LookupScope.REQUEST, 500)
    beside.begin("other", other)
    beside.begin("ended", other)
    beside.end("ended")
    for index in (alone, beside):
        index.begin("mine", mine)
    assert alone.propose("mine", count) == beside.propose("mine", count)


def test_with_scope_off_nothing_is_kept_or_proposed() -> None:
    index = LookupIndex(LookupScope.OFF, 100)
    index.begin("a", [1, 2, 3, 1, 2, 3])
    index.extend("a", [1, 2])
    assert index.propose("a", 4) == NOTHING
    assert index.tokens == 0


def test_with_scope_speculator_an_answer_is_found_by_later_requests() -> None:
    index = LookupIndex(LookupScope.SPECULATOR, 1000)
    index.begin("a", [1, 2, 3])
    index.extend("a", [4, 5, 6])
    index.end("a")
    index.begin("b", [9, 2, 3])
    assert index.propose("b", 2) == Proposal((4, 5), 2)
    assert index.propose("b", 20) == Proposal((4, 5, 6), 2)


def test_where_a_running_answer_ends_the_proposal_goes_on_with_the_lookup_of_that_answer() -> None:
    index = LookupIndex(LookupScope.SPECULATOR, 1000)
    index.begin("earlier", range(100, 110))
    index.end("earlier")
    for rid, known in (("ahead", 4), ("one ahead", 3), ("behind", 2)):
        index.begin(rid, range(100, 100 + known))
    assert index.propose("behind", 1) == Proposal((102,), 2), "the latest occurrence, one token before its end"
    assert index.propose("behind", 20) == Proposal(tuple(range(102, 106)), 2), "two tokens for each that matched"


def test_a_proposal_ends_with_the_answer_that_ended() -> None:
    index = LookupIndex(LookupScope.SPECULATOR, 1000)
    index.begin("earlier", [1, 2, 3, 4])
    index.begin("later", [7, 2, 3])
    index.end("later")
    index.begin("asks", [7, 2])
    assert index.propose("asks", 9) == Proposal((3,), 2)


def test_a_proposal_does_not_go_on_where_fewer_tokens_match() -> None:
    index = LookupIndex(LookupScope.SPECULATOR, 1000)
    index.begin("earlier", [9, 3, 4])
    index.end("earlier")
    index.begin("ahead", [1, 2, 3])
    index.begin("behind", [1, 2])
    assert index.propose("ahead", 9) == Proposal((4,), 1)
    assert index.propose("behind", 9) == Proposal((3,), 2)


def test_a_proposal_does_not_go_on_with_a_private_request() -> None:
    index = LookupIndex(LookupScope.SPECULATOR, 1000)
    index.begin("private", [1, 2, 3, 4], may_share=False)
    index.begin("ahead", [1, 2, 3])
    index.begin("behind", [1, 2])
    assert index.propose("behind", 9) == Proposal((3,), 2)


def test_a_running_answer_that_repeats_itself_lends_its_repetition() -> None:
    index = LookupIndex(LookupScope.SPECULATOR, 1000)
    index.begin("repeats", [7, 1, 2, 3, 1, 2, 3])
    index.begin("behind", [2, 3, 1, 2])
    assert index.propose("behind", 7) == Proposal((3, 1, 2, 3, 1, 2, 3), 4)


def test_of_equal_matches_the_own_text_is_taken_and_a_longer_one_goes_first() -> None:
    index = LookupIndex(LookupScope.SPECULATOR, 1000)
    index.begin("other", [6, 5, 1, 2, 70, 71])
    index.begin("own", [4, 1, 2, 80, 81, 7, 1, 2])
    index.begin("longer", [9, 9, 3, 1, 2, 80, 6, 5, 1, 2])
    index.begin("late", [1, 2, 60, 61])
    assert index.propose("own", 2) == Proposal((80, 81), 2)
    assert index.propose("longer", 2) == Proposal((70, 71), 4)


def test_evicted_requests_are_not_found() -> None:
    index = LookupIndex(LookupScope.SPECULATOR, 20)
    for rid, first in (("a", 100), ("b", 200), ("c", 300)):
        index.begin(rid, range(first, first + 8))
        index.end(rid)
    assert index.tokens == 16
    index.begin("d", [102, 103])
    assert index.propose("d", 2) == NOTHING
    index.begin("e", [99, 302, 303])
    assert index.propose("e", 2) == Proposal((304, 305), 2)


def test_proposals_end_before_a_token_outside_the_vocabulary() -> None:
    index = LookupIndex(LookupScope.REQUEST, 100, vocabulary_size=50)
    index.begin("a", [1, 2, 3, 1_000_007, 4, 1, 2])
    assert index.propose("a", 5) == Proposal((3,), 2)
    index.begin("b", [1, 2, 2**62, 1, 2])
    assert index.propose("b", 5) == NOTHING


def test_a_request_that_may_not_be_shared_helps_itself_only() -> None:
    index = LookupIndex(LookupScope.SPECULATOR, 100, shares=lambda prompt: prompt[0] != 1)
    index.begin("private", [1, 2, 3, 4])
    index.begin("other", [2, 3])
    assert index.propose("other", 1) == NOTHING
    index.extend("private", [2, 3])
    assert index.propose("private", 1) == Proposal((4,), 2)
    index.end("private")
    assert index.tokens == 2


def test_a_private_request_answers_no_other_even_where_their_suffixes_share_a_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SuffixTable, "salts_of", lambda _, spaces: tuple(0 for _ in spaces))
    index = LookupIndex(LookupScope.SPECULATOR, 1000, shares=lambda prompt: prompt[0] != 1)
    index.begin("private", [1, 2, 3, 4])
    index.begin("other", [9, 2, 3])
    assert index.propose("other", 1) == NOTHING
    index.begin("shared", [8, 2, 3, 5])
    assert index.propose("other", 1) == Proposal((5,), 2)


@pytest.mark.parametrize("prompt", [[7] * 131_072, list(range(131_072)), [1, 2] * 65_536])
def test_indexing_a_long_prompt_takes_linear_time(prompt: list[int]) -> None:
    index = LookupIndex(LookupScope.SPECULATOR, 1 << 18)
    started = time.process_time()
    index.begin("a", prompt)
    index.extend("a", prompt[:1024])
    index.propose("a", 12)
    assert time.process_time() - started < 5.0


# suffix tables --------------------------------------------------------------------------------------------------------

ORDERS = (1, 2, 5)
token_lists = st.lists(st.integers(0, 2**40), min_size=2, max_size=40).map(lambda tokens: array("q", tokens))


def latest(table: SuffixTable, tokens: array[int], end: int, space: int) -> list[int]:
    """The latest place of each suffix, the shortest first. 0: none."""
    slots = table.slots_of(tokens, end, table.salts_of([space]))
    return [table.places[slot] for _, slot in reversed(slots)]


@given(token_lists, st.data())
def test_a_range_puts_what_single_puts_put(tokens: array[int], data: st.DataObject) -> None:
    first = data.draw(st.integers(1, len(tokens)))
    last = data.draw(st.integers(first, len(tokens)))
    one_by_one, at_once = SuffixTable(ORDERS, 1 << 12), SuffixTable(ORDERS, 1 << 12)
    for end in range(first, last):
        one_by_one.put(one_by_one.slots_of(tokens, end, one_by_one.salts_of((3, 4))), 1000 + end)
    at_once.put_range(tokens, first, last, (3, 4), 1000)
    for end in range(1, len(tokens)):
        for space in (3, 4):
            assert latest(one_by_one, tokens, end, space) == latest(at_once, tokens, end, space)


def test_the_latest_place_stays_when_a_range_repeats_one_token() -> None:
    tokens = array("q", [7] * 100_000)
    table = SuffixTable(ORDERS, 1 << 12)
    table.put_range(tokens, 1, len(tokens), (0,), 1)
    assert latest(table, tokens, len(tokens), 0) == [len(tokens)] * len(ORDERS)


def test_spaces_do_not_see_each_other() -> None:
    tokens = array("q", range(10))
    table = SuffixTable(ORDERS, 1 << 12)
    table.put_range(tokens, 1, len(tokens), (1,), 1)
    assert latest(table, tokens, 9, 1) == [10] * len(ORDERS)
    assert latest(table, tokens, 9, 2) == [0] * len(ORDERS)


def test_the_longest_suffix_is_found_first_and_of_equal_ones_the_first_salts() -> None:
    table, text = SuffixTable(ORDERS, 1 << 12), array("q", range(5))
    for place, space in enumerate((3, 4), start=1):
        table.put(table.slots_of(text, 5, table.salts_of([space])), place)
    found = [(order, table.places[slot]) for order, slot in table.slots_of(text, 5, table.salts_of((4, 3)))]
    assert found == [(5, 2), (5, 1), (2, 2), (2, 1), (1, 2), (1, 1)]

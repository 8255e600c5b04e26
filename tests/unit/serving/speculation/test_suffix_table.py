from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.serving.speculation.lookup import SuffixTable

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

"""A list comes to its end whatever sizes the objects of others have, and no page exceeds its limit."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_operator.errors import TooLarge
from aurora_operator.kubernetes_api import MAX_OBJECT_BYTES, MAX_PAGE_BYTES, PAGE_SIZE, POD, PageSize, Resource
from aurora_operator.watch.api_stream import Page
from aurora_operator.watch.paged_list import PagedList
from tests.example_count import example_count

SMALL, LARGE, TOO_LARGE = 10_000, 1_500_000, MAX_OBJECT_BYTES + 1


@dataclass
class SizedObjects:
    """A fake API server with objects of these sizes. Refuses to send more than a page's limit."""

    sizes: list[int]
    limits: list[int] = field(default_factory=list)

    async def list_page(
        self,
        resource: Resource,
        namespace: str,
        labels: str,
        token: str,
        size: PageSize,
        *,
        metadata_only: bool = False,
    ) -> Page:
        first = int(token or 0)
        last = min(first + size.limit, len(self.sizes))
        self.limits.append(size.limit)
        if not metadata_only and sum(self.sizes[first:last]) > size.max_bytes:
            raise TooLarge("list pods: a page exceeds its limit")
        items = [{"metadata": {"namespace": "team", "name": f"p{number}"}} for number in range(first, last)]
        return Page(items, 9, str(last) if last < len(self.sizes) else "")


async def names(server: SizedObjects) -> list[str]:
    api: Any = server
    pages, found = PagedList(api, POD, "", ""), list[str]()
    while True:
        found += [item["metadata"]["name"] for item in (await pages.next_page()).items]
        if not pages.has_more:
            return found


@settings(max_examples=example_count(50), deadline=None)
@given(st.lists(st.sampled_from([SMALL, LARGE, TOO_LARGE]), max_size=300))
async def test_every_object_that_fits_is_listed_once(sizes: list[int]) -> None:
    found = await names(SizedObjects(sizes))
    assert found == [f"p{number}" for number, size in enumerate(sizes) if size <= MAX_OBJECT_BYTES]


async def test_small_objects_come_in_full_pages_again_after_a_large_one() -> None:
    server = SizedObjects([*[LARGE] * 3, *[SMALL] * 1000])
    assert len(await names(server)) == 1003
    assert server.limits[0] == server.limits[-1] == PAGE_SIZE
    assert len(server.limits) < 25


async def test_an_object_that_is_too_large_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        await names(SizedObjects([SMALL, TOO_LARGE, SMALL]))
    assert [record.message.split(" bytes")[0] for record in caplog.records] == [
        f"Pod team/p1 exceeds {MAX_OBJECT_BYTES}"
    ]


def test_a_page_of_one_object_may_have_as_much_as_an_object_can_have() -> None:
    size = PageSize()
    assert size.max_bytes == MAX_PAGE_BYTES
    while size.shrink():
        pass
    assert (size.limit, size.max_bytes) == (1, MAX_OBJECT_BYTES)

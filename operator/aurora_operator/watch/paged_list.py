"""One list of the API server, in pages that are small enough for this process.

Why: everybody may set the labels that the operator watches, and an object may have more than a megabyte. A page that
exceeds its limit is asked for again with fewer objects.

Invariant: a list always comes to its end. An object that alone exceeds the limit is left out, and named in the log.
"""

from __future__ import annotations

import logging

from aurora_operator.errors import TooLarge
from aurora_operator.kubernetes_api import PageSize, Resource
from aurora_operator.watch.api_stream import ApiStream, Page

log = logging.getLogger(__name__)


class PagedList:
    """Reads the pages of one list, one after the other. Holds none of them."""

    def __init__(self, stream: ApiStream, resource: Resource, namespace: str, labels: str) -> None:
        self._stream, self._resource, self._place = stream, resource, (namespace, labels)
        self._size, self._token = PageSize(), ""

    @property
    def has_more(self) -> bool:
        """Whether the last page was not the list's last one."""
        return bool(self._token)

    async def next_page(self) -> Page:
        """The first page, or the next one. Raises :class:`KubernetesError`."""
        page = await self._fitting_page()
        self._token = page.next_page
        self._size.grow()
        return page

    async def _fitting_page(self) -> Page:
        while True:
            try:
                return await self._stream.list_page(self._resource, *self._place, self._token, self._size)
            except TooLarge:
                if not self._size.shrink():
                    break
        return await self._without_next_object()

    async def _without_next_object(self) -> Page:
        """An empty page in place of the next object, which is too large."""
        page = await self._stream.list_page(self._resource, *self._place, self._token, self._size, metadata_only=True)
        for item in page.items:
            name = f"{self._resource.kind} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}"
            log.error("%s exceeds %d bytes and is ignored; make it smaller", name, self._size.max_bytes)
        return Page((), page.revision, page.next_page)

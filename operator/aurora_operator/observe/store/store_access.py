"""Opens a speculator's store with the credentials that its spec names, and reads the store when a read is due.

Between two reads the last view is used again. Why that is safe: records are create-once and a decision is a new record
of the channel. An operator that decides upon an outdated view asks for an epoch that is taken, gets
:class:`ObjectExists`, and reads the store before it decides again. Agents refuse requests with an outdated epoch in the
same way.

Invariants: a store that does not answer delays an observation by at most :data:`CALL_SECONDS`, because pods and their
status must not wait for it. Corrected settings open the store anew. A store that the administrator's policy refuses is
never called. Without the keys that sign the records, nothing is read and nothing is decided.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http import HTTPStatus
from math import inf
from typing import Any, Final, TypeVar

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.children.common_pod import store_settings
from aurora_operator.children.metadata import Owner, keys_name
from aurora_operator.errors import KubernetesError
from aurora_operator.observe.observed import SIGNING_KEYS_MISSING, StoreView
from aurora_operator.observe.secret_values import SecretReader, secret_value
from aurora_operator.observe.store.signed_records import RecordKeys
from aurora_operator.observe.store.store_reader import StoreNeeds, StoreReader, unreachable
from aurora_protocol.draft_records import Channel
from aurora_store import StoreConfig
from aurora_store.deadline import total_deadline
from aurora_store.errors import StoreError
from aurora_store.store_policy import StorePolicy

T = TypeVar("T")
MAX_CALLS: Final = 64
"""Reads and writes of stores under way at a time. The others wait."""
CALL_SECONDS: Final = 20.0
"""Deadline of one read or write, the wait for its turn included."""
MIN_PAUSE_SECONDS, REST_SECONDS = 2.0, 30.0
"""Seconds between two reads. They double from the first to the second while nothing changes."""
_THREADS: Final = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="store")

_Settings = tuple[StoreConfig, RecordKeys]


class StoreCalls:
    """Calls of one speculator's store, in threads and one at a time.

    A call that is abandoned keeps its thread until the next byte comes or the connection times out, and nothing else is
    called before. So a store that sends a byte now and then holds one thread, and not for longer than the deadline.
    """

    def __init__(self) -> None:
        self._call: asyncio.Future[Any] | None = None

    async def run(self, work: Callable[[], T], seconds: float = CALL_SECONDS) -> T:
        """Run ``work`` in a thread. Raises what ``work`` raises, and :class:`StoreError` after ``seconds``."""
        if self._call is not None and not self._call.done():
            raise StoreError("an earlier call still waits for the store; check that the store answers")

        def bounded() -> T:
            with total_deadline(seconds):
                return work()

        call = self._call = asyncio.get_running_loop().run_in_executor(_THREADS, bounded)
        call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(call)
        except TimeoutError as error:
            raise StoreError(f"no complete answer within {seconds:.0f} s; check that the store answers") from error


class StoreAccess:
    """The store of one speculator."""

    def __init__(self, secrets: SecretReader, policy: StorePolicy, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` returns monotonic seconds."""
        self._secrets, self._policy, self._clock = secrets, policy, clock
        self._settings: _Settings | None = None
        self.calls = StoreCalls()
        self.reader: StoreReader | None = None
        """The open store; None until its settings were found, and after a call that was abandoned."""
        self._view: StoreView | None = None
        """The last view. None: read the store now."""
        self._needs: StoreNeeds | None = None
        """What the last view was read for."""
        self._pause_seconds = MIN_PAUSE_SECONDS
        self._due_seconds = inf

    async def view(self, owner: Owner, spec: SpeculatorSpec, needs: StoreNeeds) -> StoreView:
        """The records that are needed, read again where a read is due. Raises :class:`KubernetesError`."""
        settings = await self._find_settings(owner, spec)
        if isinstance(settings, StoreView):
            self._settings, self._due_seconds = None, inf
            return settings
        if settings != self._settings:
            self._settings, self.reader, self._view = settings, None, None
        if self._view is None or needs != self._needs or self._clock() >= self._due_seconds:
            await self._look(settings, needs)
        assert self._view is not None, "a look keeps its view"
        return self._view

    async def has_news(self) -> bool:
        """Whether the store has something new to tell, by a read if one is due. Asks nothing else."""
        if self._settings is None or self._view is None or self._needs is None:
            return True
        return self._clock() >= self._due_seconds and await self._look(self._settings, self._needs)

    async def _look(self, settings: _Settings, needs: StoreNeeds) -> bool:
        """Read the store. Returns whether its records are other ones, or read for other needs."""
        former, self._view = self._view, await self._read(settings, needs)
        is_new = needs != self._needs or former is None or _records(former) != _records(self._view)
        self._needs = needs
        pause = self._pause_seconds = MIN_PAUSE_SECONDS if is_new else min(2 * self._pause_seconds, REST_SECONDS)
        self._due_seconds = self._clock() + pause * random.uniform(1.0, 1.2)  # noqa: S311 - jitter
        return is_new

    async def advance(self, channel: Channel) -> None:
        """Write the channel's next record.

        Raises :class:`ObjectExists` when another operator wrote that record first, or another :class:`StoreError`.
        The next view reads the store again, also after an error: it is then not known whether the record was written.
        """
        reader = self.reader
        if reader is None:
            raise StoreError("the store is not open: it could not be read before")
        view, self._view, self.reader = self._view, None, None
        await self.calls.run(lambda: reader.advance(channel))
        self.reader = reader
        if view is not None:
            self._view = replace(view, channel=channel)

    def read_next(self) -> None:
        """Read the store for the next view: an agent has seen a decision that this operator does not know."""
        self._view = None

    def seconds_until_due(self) -> float:
        """Seconds until a read is due although nothing else happens."""
        if self._settings is not None and self._view is None:
            return 0.0
        return max(0.0, self._due_seconds - self._clock())

    async def _read(self, settings: _Settings, needs: StoreNeeds) -> StoreView:
        known, self.reader = self.reader, None  # an abandoned call still uses it

        def read() -> tuple[StoreReader, StoreView]:
            reader = known or StoreReader(*settings)
            return reader, reader.read(needs)

        try:
            self.reader, view = await self.calls.run(read)
        except StoreError as error:
            return unreachable(error)
        return view

    async def _find_settings(self, owner: Owner, spec: SpeculatorSpec) -> _Settings | StoreView:
        """How to read the store, or a view with the error that prevents it. Raises :class:`KubernetesError`."""
        config = await self.config(owner, spec)
        if isinstance(config, StoreView):
            return config
        name = keys_name(owner)
        try:
            secret = await self._secrets.find(name)
        except KubernetesError as error:
            return _forbidden(name, error)
        if secret is None:
            return StoreView(reason=SIGNING_KEYS_MISSING, error=f"the operator is making the Secret {name}")
        keys = RecordKeys.of(owner, secret) if owner.owns(secret) else None
        if keys is None:
            text = f"the Secret {name} is not the one that the operator made: restore it, or delete it"
            return StoreView(reason=SIGNING_KEYS_MISSING, error=text)
        return config, keys

    async def config(self, owner: Owner, spec: SpeculatorSpec) -> StoreConfig | StoreView:
        """How to reach the store, or a view with the error that prevents it. Raises :class:`KubernetesError`."""
        settings = store_settings(owner, spec)
        refusal = self._policy.refusal(owner.namespace, spec.store, settings.root)
        if refusal is not None:
            return StoreView(reason=refusal.reason, error=refusal.message)
        access, secret = "", ""
        reference = spec.store.credentials.secret_ref
        if reference is not None:
            try:
                found = await self._secrets.find(reference.name)
            except KubernetesError as error:
                return _forbidden(reference.name, error)
            if found is None:
                text = f"create the Secret {reference.name} with the store's keys"
                return StoreView(reason="SecretMissing", error=text)
            access, secret = (secret_value(found, key) for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
            if not access or not secret:
                text = f"the Secret {reference.name} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                return StoreView(reason="SecretIncomplete", error=text)
        return StoreConfig(
            settings.bucket,
            settings.root,
            settings.endpoint,
            settings.region,
            access or None,
            secret or None,
            refuses_link_local=True,
        )


def _forbidden(secret: str, error: KubernetesError) -> StoreView:
    """The view while the operator may not read ``secret``. Raises ``error`` when it says anything else."""
    if error.status != HTTPStatus.FORBIDDEN:
        raise error
    text = f"the operator may not read the Secret {secret}: add it to secretNames of the Helm chart"
    return StoreView(reason="SecretForbidden", error=text)


def _records(view: StoreView) -> tuple[object, ...]:
    """The create-once records of a view, and its fault. The trainer's status changes all the time."""
    epoch = view.channel.epoch if view.channel else None
    return view.reason, view.lineage is None, epoch, frozenset(view.registrations), len(view.evidence)

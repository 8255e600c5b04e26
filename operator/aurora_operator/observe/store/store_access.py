"""Opens a speculator's store with the credentials that its spec names, and reads the store when a read is due.

Between two reads the last view is used again (``store_schedule`` says when, and why that is safe).

Invariants: a store that does not answer delays an observation by at most :data:`CALL_TIMEOUT_SECONDS`, because pods and
their status must not wait for it. Corrected settings open the store anew at once; nothing waits for a call with former
settings. A store that the administrator's policy refuses is never called. Without the keys that sign the records, the
view is not good: nothing is decided that could not be signed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TypeVar

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.store import StoreSpec
from aurora_operator.children.owner import Owner
from aurora_operator.children.pod_template import store_settings
from aurora_operator.errors import CallAbandoned, Conflict, KubernetesError
from aurora_operator.io_pools import EndpointPool, StorePools, pool_of
from aurora_operator.observe.observed import SIGNING_KEYS_MISSING, StoreView
from aurora_operator.observe.secret_values import SecretReader, secret_value
from aurora_operator.observe.store.evidence_check import ExaminedEvidence
from aurora_operator.observe.store.record_key_reader import RecordKeyReader
from aurora_operator.observe.store.signed_records import RecordKeys
from aurora_operator.observe.store.store_reader import READ_SECONDS, StoreReader
from aurora_operator.observe.store.store_schedule import MENDED_BY_A_PERSON, ReadSchedule, ReadScope, StoreNeeds
from aurora_operator.observe.store.trainer_changes import TrainerChanges
from aurora_protocol.draft_records import Channel
from aurora_store import StoreConfig
from aurora_store.errors import StoreError
from aurora_store.policy.store_policy import StorePolicy

T = TypeVar("T")
CALL_TIMEOUT_SECONDS = READ_SECONDS + 2.0
"""A read ends at its own deadline. A little later it is abandoned, for example while a host name is looked up."""

_Settings = tuple[StoreConfig, RecordKeys | None]
"""How to reach a store, and the keys that sign its records. None: the keys do not exist yet."""


class StoreAccess:
    """The store of one speculator."""

    def __init__(
        self,
        secrets: SecretReader,
        policy: StorePolicy,
        pools: StorePools | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` returns monotonic seconds."""
        self._secrets, self._policy, self._pools, self._clock = secrets, policy, pools, clock
        self._pool: EndpointPool
        self.keys = RecordKeyReader(secrets, clock)
        self._settings: _Settings | None = None
        self._examined: tuple[_Settings | None, ExaminedEvidence] = None, {}
        """Evidence that was examined, with the settings of its store. It outlives a reader that was abandoned."""
        self._trainer_changes = TrainerChanges()
        """The changes of the trainer's record in the same store. They outlive a reader, too."""
        self.reader: StoreReader | None = None
        """The open store; None until credentials were found."""
        self._view = StoreView()
        self._schedule = ReadSchedule()
        self._reading: asyncio.Task[tuple[StoreReader, StoreView]] | None = None
        """The read that an observation waits for."""
        self._wanted: StoreSpec | None = None
        """The settings in the spec at the last observation."""

    @property
    def reads(self) -> bool:
        """Whether an observation waits for a read."""
        return self._reading is not None

    def abandon_read_of_another(self, wanted: StoreSpec) -> None:
        """Let nobody wait any longer for a read that began with other settings than ``wanted``."""
        if self._reading is not None and wanted != self._wanted:
            self._reading.cancel()

    async def view(self, owner: Owner, spec: SpeculatorSpec, needs: StoreNeeds) -> StoreView:
        """The records that are needed, read again where a read is due.

        Raises :class:`Conflict` when the read was abandoned meanwhile, and :class:`KubernetesError`.
        """
        self._wanted = spec.store
        settings = await self._find_settings(owner, spec)
        if isinstance(settings, StoreView):
            self._settings = None  # the store is opened anew once its settings are there
            return settings
        if settings != self._settings:
            self._open(settings)
        scope = self._schedule.scope(self._clock(), needs)
        if scope is not ReadScope.NONE or (self._view.ok and self.reader is not None and self.reader.lacks(needs)):
            view = await self._read(settings, needs, scope)
            changed = self._trainer_changes.last_change(view.trainer, datetime.now(UTC))
            self._view = replace(view, trainer_changed=changed)
            self._schedule.record(self._clock(), needs, scope, self._view)
            reference = spec.store.credentials.secret_ref
            if not self._view.ok and self._view.reason not in MENDED_BY_A_PERSON and reference is not None:
                # A store that refuses rotated credentials says so in many ways, so other failures are a reason to look.
                self._secrets.doubt(reference.name)
        return self._view if settings[1] is not None or not self._view.ok else _without_keys(self._view)

    async def advance(self, channel: Channel, ensure_leading: Callable[[], None]) -> None:
        """Write the channel's next record.

        Args:
            ensure_leading: called in the thread just before the write, because waiting for a thread may take long.

        Raises :class:`ObjectExists` when another operator wrote that record first, or another :class:`StoreError`.
        After an error the next view reads everything again, because the view that led to the record was outdated, or
        because it is not known whether the record was written.
        """
        reader = self.reader
        if reader is None:
            raise StoreError("the store is not open: it could not be read before")

        def write() -> None:
            ensure_leading()
            reader.advance(channel)

        try:
            await self._call(write)
        except CallAbandoned as error:
            self._close()
            raise StoreError(str(error)) from error
        except StoreError:
            self._schedule.reset()
            raise
        self._view = replace(self._view, channel=channel, channel_signed=True)

    def read_everything_next(self) -> None:
        """Read all records for the next view: an agent has seen a decision that this operator does not know."""
        self._schedule.reset()

    def seconds_until_due(self) -> float:
        """Seconds until a read is due although nothing else happens."""
        if self.keys.expected:
            return 0.0
        if self._settings is None:
            return math.inf
        return self._schedule.seconds_until_due(self._clock())

    async def _find_settings(self, owner: Owner, spec: SpeculatorSpec) -> _Settings | StoreView:
        """How to read the store, or a view with the error that prevents it. Raises :class:`KubernetesError`."""
        config = await self.config(owner, spec)
        if isinstance(config, StoreView):
            self.keys.expected = False  # the store cannot be read anyhow
            return config
        keys = await self.keys.find(owner)
        return keys if isinstance(keys, StoreView) else (config, keys)

    def _open(self, settings: _Settings) -> None:
        self._close()
        self._settings = settings
        if settings != self._examined[0]:
            self._examined = settings, {}
            self._trainer_changes = TrainerChanges()
        self._pool = pool_of(settings[0], self._pools)

    def _close(self) -> None:
        """Forget the open store. A call that still runs keeps its own reader, and nobody waits for it."""
        self._settings = self.reader = None
        self._schedule = ReadSchedule()

    async def _read(self, settings: _Settings, needs: StoreNeeds, scope: ReadScope) -> StoreView:
        known, examined = self.reader, self._examined[1]

        def read() -> tuple[StoreReader, StoreView]:
            reader = StoreReader(*settings, examined) if known is None else known
            return reader, reader.read(needs, scope)

        self._reading = asyncio.create_task(self._call(read))
        try:
            self.reader, view = await self._reading
        except asyncio.CancelledError:
            self.reader = None  # the abandoned call still uses it
            observation = asyncio.current_task()
            if observation is None or observation.cancelling():
                raise
            raise Conflict("spec.store changed while the store was read", HTTPStatus.CONFLICT) from None
        except StoreError as error:
            return StoreView(reason="Unreachable", error=str(error))
        except CallAbandoned as error:
            self.reader = None  # the abandoned call still uses it
            return StoreView(reason="Unreachable", error=str(error))
        finally:
            self._reading = None
        return view

    async def _call(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread of the open store. Raises :class:`CallAbandoned`, and what ``work`` raises."""
        namespace = self._secrets.namespace
        return await self._pool.call(work, namespace=namespace, timeout_seconds=CALL_TIMEOUT_SECONDS)

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
                if error.status != HTTPStatus.FORBIDDEN:
                    raise
                text = f"the operator may not read the Secret {reference.name}: add it to secretNames of the Helm chart"
                return StoreView(reason="SecretForbidden", error=text)
            if found is None:
                text = f"create the Secret {reference.name} with the store's keys"
                return StoreView(reason="SecretMissing", error=text)
            access, secret = (secret_value(found, key) for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
            if not access or not secret:
                self._secrets.doubt(reference.name)
                text = f"the Secret {reference.name} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                return StoreView(reason="SecretIncomplete", error=text)
        return StoreConfig(
            settings.bucket,
            settings.root,
            settings.endpoint,
            settings.region,
            access or None,
            secret or None,
            addresses=self._policy.addresses,
            encryption=settings.encryption,
        )


def _without_keys(view: StoreView) -> StoreView:
    """``view`` while the signing keys do not exist: the operator makes them, and trusts the newest record once."""
    return StoreView(
        reason=SIGNING_KEYS_MISSING,
        error="the operator is making the keys that sign the records of the store",
        unsigned_record=view.unsigned_record,
    )

"""Opens a speculator's store with the credentials that its spec names, and reads the store within a deadline.

Invariant: a store that does not answer delays an observation by at most :data:`READ_TIMEOUT_SECONDS`, because pods and
their status must not wait for it. At most one read runs at a time.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_operator.children.owner import Owner
from aurora_operator.children.pod_template import store_settings
from aurora_operator.errors import KubernetesError
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.secret_values import SecretReader, secret_value
from aurora_operator.observe.store_reader import StoreReader
from aurora_store import StoreConfig

READ_TIMEOUT_SECONDS = 20.0


class StoreAccess:
    """The store of one speculator."""

    def __init__(self, secrets: SecretReader) -> None:
        self._secrets = secrets
        self._read: asyncio.Future[StoreView] | None = None
        self.reader: StoreReader | None = None
        """The open store; None until credentials were found."""

    async def view(self, owner: Owner, spec: SpeculatorSpec, versions: frozenset[int]) -> StoreView:
        """The store's records, including those about ``versions``. Raises :class:`KubernetesError`."""
        config = await self.config(owner, spec)
        if isinstance(config, StoreView):
            return config
        if self.reader is None or self.reader.config != config:
            self.reader = await asyncio.to_thread(StoreReader, config)
        view = await self._read_in_time(self.reader, versions)
        reference = spec.store.credentials.secret_ref
        if not view.ok and reference is not None:
            # A store that refuses rotated credentials says so in many ways, so any failure is a reason to look.
            self._secrets.doubt(reference.name)
        return view

    async def config(self, owner: Owner, spec: SpeculatorSpec) -> StoreConfig | StoreView:
        """How to reach the store, or a view with the error that prevents it. Raises :class:`KubernetesError`."""
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
        settings = store_settings(owner, spec)
        return StoreConfig(
            settings.bucket, settings.root, settings.endpoint, settings.region, access or None, secret or None
        )

    async def _read_in_time(self, reader: StoreReader, versions: frozenset[int]) -> StoreView:
        """Read in a thread, within the deadline.

        While an earlier read still hangs, a call waits for that read instead of starting another one.
        """
        error = f"the store gave no answer within {READ_TIMEOUT_SECONDS:.0f} s"
        timed_out = StoreView(reason="Unreachable", error=error)
        if self._read is not None and not await _finished_in_time(self._read):
            return timed_out
        self._read = asyncio.ensure_future(asyncio.to_thread(reader.read, versions))
        return self._read.result() if await _finished_in_time(self._read) else timed_out


async def _finished_in_time(read: asyncio.Future[StoreView]) -> bool:
    await asyncio.wait({read}, timeout=READ_TIMEOUT_SECONDS)
    return read.done()

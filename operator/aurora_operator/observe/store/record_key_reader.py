"""Reads the Secret with a speculator's signing keys, once.

Invariants: only the keys are kept, not the Secret. They are read again after a doubt, at most once in
:data:`DOUBT_SECONDS`: a person may have deleted the Secret, and new pods would then wait for it. While the doubt lasts
and the keys stay as they are, the time doubles up to :data:`MAX_DOUBT_SECONDS`. While the Secret is missing, it is
looked for with a growing delay, or at once after the operator made it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from math import inf
from typing import Final

from aurora_operator.children.metadata import signing_keys_name
from aurora_operator.children.owner import Owner
from aurora_operator.errors import KubernetesError
from aurora_operator.observe.observed import SIGNING_KEYS_MISSING, StoreView
from aurora_operator.observe.secret_values import SecretReader
from aurora_operator.observe.store.signed_records import RecordKeys

DOUBT_SECONDS: Final = 60.0
MAX_DOUBT_SECONDS: Final = 600.0
"""A pod that crashes, or a Job that waits for a GPU, does so for days."""
DOUBT_ENDS_SECONDS: Final = 180.0
"""A doubt that nobody repeats for so long is over. Speculators are looked at more often."""


class RecordKeyReader:
    """The signing keys of one speculator."""

    __slots__ = (
        "_clock",
        "_doubt_seconds",
        "_doubted_seconds",
        "_former",
        "_keys",
        "_read_seconds",
        "_secrets",
        "expected",
    )

    def __init__(self, secrets: SecretReader, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` returns monotonic seconds."""
        self._secrets, self._clock = secrets, clock
        self._keys: RecordKeys | None = None
        self._former: RecordKeys | None = None
        """The keys before the doubt for which they are read again."""
        self._read_seconds = self._doubted_seconds = -inf
        self._doubt_seconds = DOUBT_SECONDS
        self.expected = False
        """The operator made the Secret since the last look."""

    async def find(self, owner: Owner) -> RecordKeys | StoreView | None:
        """The keys of the Secret. None: the Secret does not exist. A view says why the Secret cannot be used.

        Raises :class:`KubernetesError`.
        """
        if self._keys is not None:
            return self._keys
        self.expected = False
        name = signing_keys_name(owner)
        try:
            secret = await self._secrets.find(name)
        except KubernetesError as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            text = f"the operator may not read the Secret {name}: add it to secretNames of the Helm chart"
            return StoreView(reason="SecretForbidden", error=text)
        if secret is None:
            return None
        if not owner.owns(secret):
            self._secrets.doubt(name)
            text = f"the Secret {name} belongs to somebody else, so the operator has no signing keys"
            return StoreView(reason=SIGNING_KEYS_MISSING, error=text, name_taken=(f"Secret {name}",))
        keys = RecordKeys.of(owner, secret)
        if keys is None:
            self._secrets.doubt(name)
            text = f"the Secret {name} does not hold what the operator wrote: delete it, and the operator makes it anew"
            return StoreView(reason=SIGNING_KEYS_MISSING, error=text)
        self._secrets.drop(name)
        self._doubt_seconds = min(MAX_DOUBT_SECONDS, 2 * self._doubt_seconds) if keys == self._former else DOUBT_SECONDS
        self._keys, self._read_seconds = keys, self._clock()
        return keys

    def doubt(self) -> None:
        """The Secret may be gone or another one."""
        now = self._clock()
        if now - self._doubted_seconds > DOUBT_ENDS_SECONDS:
            self._doubt_seconds = DOUBT_SECONDS
        self._doubted_seconds = now
        if now - self._read_seconds >= self._doubt_seconds:
            self._former, self._keys = self._keys, None

    def made(self, owner: Owner) -> None:
        """The operator made the Secret just now."""
        self._secrets.drop(signing_keys_name(owner))
        self.expected = True

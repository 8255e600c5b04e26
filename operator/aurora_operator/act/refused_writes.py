"""Remembers which children could not be written, so that a refusal that lasts for days costs few calls.

A refused write is tried again after a delay that doubles with each refusal, however often the speculator is reconciled
meanwhile. It is tried at once when the child or the object changed, or when a change in the cluster woke the loop. No
watch shows that the operator got a right, or that an admission webhook changed its mind.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final, TypeVar

from aurora_operator.errors import UNAVAILABLE_STATUSES, Conflict, KubernetesError

T = TypeVar("T")
ChildKey = tuple[str, str]
"""Kind and name."""
MIN_RETRY_SECONDS: Final = 2.0
MAX_RETRY_SECONDS: Final = 600.0
"""Longest time between two tries of a write that the API server refuses."""
MAX_NAME_TAKEN_SECONDS: Final = 60.0
"""The same for a name that another owner's object has. Its owner may delete it at any time, and nobody tells."""


class NameTakenError(Exception):
    """An object of another owner has the child's name."""


@dataclass(frozen=True)
class _Refusal:
    """A refusal without its exception, whose traceback would keep all planned children and generated keys in memory."""

    identity: Any
    name_taken: bool
    text: str
    status: int
    """HTTP status; 0 for a name that is taken."""
    delay_seconds: float
    next_seconds: float

    def error(self) -> NameTakenError | KubernetesError:
        """A new exception that says the same."""
        return NameTakenError(self.text) if self.name_taken else KubernetesError(self.text, self.status)


class RefusedWrites:
    """The refused children of one speculator.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refusals: dict[ChildKey, _Refusal] = {}

    async def attempt(self, key: ChildKey, identity: Any, write: Callable[[], Awaitable[T]]) -> T:
        """Write a child, or raise the last refusal of the same write while it is not time to try again.

        Args:
            identity: changes when the child or the stored object does.
        """
        known = self._refusals.get(key)
        if known is not None and known.identity == identity and self._clock() < known.next_seconds:
            raise known.error()
        try:
            written = await write()
        except Conflict:
            raise
        except (NameTakenError, KubernetesError) as error:
            if isinstance(error, NameTakenError) or error.status not in UNAVAILABLE_STATUSES:
                self._add(key, identity, error)
            raise
        self._refusals.pop(key, None)
        return written

    def try_now(self) -> None:
        """Try each write at the next opportunity. The delays go on growing if they are refused again."""
        for key, known in self._refusals.items():
            self._refusals[key] = replace(known, next_seconds=-inf)

    def forget(self, key: ChildKey) -> None:
        """Forget the refusal of a child that is not to be written now."""
        self._refusals.pop(key, None)

    def keep_only(self, keys: set[ChildKey]) -> None:
        """Forget the children that are no longer wanted."""
        for key in self._refusals.keys() - keys:
            del self._refusals[key]

    def _add(self, key: ChildKey, identity: Any, error: NameTakenError | KubernetesError) -> None:
        known, delay_seconds = self._refusals.get(key), MIN_RETRY_SECONDS
        if known is not None and known.identity == identity:
            longest = MAX_NAME_TAKEN_SECONDS if isinstance(error, NameTakenError) else MAX_RETRY_SECONDS
            delay_seconds = min(longest, 2 * known.delay_seconds)
        name_taken = isinstance(error, NameTakenError)
        status = 0 if isinstance(error, NameTakenError) else error.status
        next_seconds = self._clock() + delay_seconds
        self._refusals[key] = _Refusal(identity, name_taken, str(error), status, delay_seconds, next_seconds)

    def seconds_until_retry(self) -> float:
        """Seconds until a write is to be tried again; infinite while none was refused."""
        due = min((known.next_seconds for known in self._refusals.values()), default=inf)
        return max(0.0, due - self._clock())

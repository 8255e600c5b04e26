"""The operator's reader of a store (:class:`StoreReader`) and its plan, over the mutated store of :class:`FuzzedStore`.

Invariants that :meth:`FuzzedOperator.attack` checks: a read returns a view and raises nothing. A view with an error
shows no record, and its text is short. A view without one shows records of the right numbers only. The operator calls
no evidence a pass whose samples the good evidence lacks. A plan is made from every view, and the API server would take
its status. After the store is good again, the same reader sees it whole.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.store.signed_records import RecordKeys
from aurora_operator.observe.store.store_reader import StoreNeeds, StoreReader
from aurora_operator.plan import plan
from aurora_protocol.evidence_records import VerdictKind
from aurora_protocol.signatures import KeyName
from aurora_store import StoreConfig
from aurora_store.errors import MAX_ERROR_CHARACTERS
from tests.assets.signing import KEYS
from tests.fuzz.fuzzed_store import FuzzedStore
from tests.unit.operator.worlds import CONFIG, observed
from tests.unit.training import tiny

MAX_STATUS_BYTES = 100_000
"""The API server takes a resource of 1.5 MB."""
RECORD_KEYS = RecordKeys("1a2b3c4d", KEYS[KeyName.CHANNEL], KEYS[KeyName.EVIDENCE])
NEEDS = StoreNeeds(versions=frozenset({0, 1, 2}))
_MAX_TEXT = 2 * MAX_ERROR_CHARACTERS
"""An error names its key beside its bounded text."""


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


class ListedObjects(tiny.MemoryObjects):
    """The same objects, with the calls by which the operator opens a store."""

    def __init__(self, store: FuzzedStore) -> None:
        super().__init__()
        self.written = defaultdict(lambda: datetime.now(UTC), store.objects.written)

    def probe(self) -> None:
        """A dictionary has conditional writes."""

    def ensure_bucket(self) -> None:
        """A dictionary is there."""


class FuzzedOperator:
    """The reader of one speculator."""

    def __init__(self, store: FuzzedStore) -> None:
        self._store = store
        self._objects = ListedObjects(store)
        self._good = self.view(self.reader(), dict(store.good))
        assert self._good.ok, self._good.error

    def reader(self) -> StoreReader:
        """A reader that knows nothing yet."""
        config = StoreConfig("bucket", "root", None, "region", "access", "secret")
        return StoreReader(config, RECORD_KEYS, objects=self._objects)

    def view(self, reader: StoreReader, objects: dict[str, bytes]) -> StoreView:
        """What ``reader`` sees when the store holds ``objects``."""
        self._objects.data = objects
        return reader.read(NEEDS)

    def attack(self, random_: random.Random) -> None:
        """One mutation, read by a new reader and by one that knows the good store. Raises AssertionError."""
        what = self._store.mutate(random_)
        mutated = dict(self._store.objects.data)
        experienced = self.reader()
        self.view(experienced, dict(self._store.good))
        for reader in (self.reader(), experienced):
            try:
                view = self.view(reader, mutated)
                again = self.view(reader, dict(self._store.good))
            except Exception as error:
                raise AssertionError(f"{what}: the operator's reader raised {type(error).__name__}: {error}") from error
            self._check(what, view)
            self._check_plan(what, view)
            assert again.ok, f"{what}: the good store is not readable afterwards: {again.error}"

    def _check_plan(self, what: str, view: StoreView) -> None:
        world = observed(store=view)
        try:
            status = plan(world, CONFIG, datetime.now(UTC)).status
            if status is None:
                return
            text = status.model_dump_json(by_alias=True, exclude_none=True)
            SpeculatorStatus.model_validate_json(text)
        except Exception as error:
            raise AssertionError(f"{what}: the plan raised {type(error).__name__}: {error}") from error
        assert len(text) <= MAX_STATUS_BYTES, f"{what}: a status of {len(text)} bytes"
        assert max(numbers(json.loads(text))) < 1 << 63, f"{what}: a number beyond 64 bits"

    def _check(self, what: str, view: StoreView) -> None:
        assert len(view.error) <= _MAX_TEXT, f"{what}: a long error"
        if not view.ok:
            shown = (view.lineage, view.channel, view.trainer, *view.registrations, *view.evidence)
            assert not any(shown), f"{what}: an unreadable store shows {shown}"
        for number, registration in view.registrations.items():
            assert number == registration.version, f"{what}: version {registration.version} is shown as {number}"
        passed = {e.attempt for e in self._good.evidence if e.verdict.kind is VerdictKind.PASS}
        for evidence in view.evidence:
            if evidence.verdict.kind is VerdictKind.PASS:
                assert evidence.attempt in passed, f"{what}: attempt {evidence.attempt} passed"

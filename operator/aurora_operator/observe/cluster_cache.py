"""The speculators and their children as the API server has them, filled by informers and by our own writes. Pure.

Why: a look reads this cache, so that a speculator at rest costs no API call.

The cache has two sources. An informer passes on what it listed and watched, in the API server's order. A write puts its
answer back, so that the operator reads its own writes, often before the informer delivers them.

Invariants:

- The newest resourceVersion of an object wins. Versions of one kind are compared as numbers, which KEP-5504 allows.
- An informer is complete up to a revision, its *progress*. A write's answer that is not newer than the progress is
  dropped: the informer has seen that revision already, and perhaps the deletion after it. A late answer can therefore
  never bring a deleted object back.
- A list removes the objects that it does not contain, unless they are newer than the list.
- When the API server's history went back (etcd was restored from a backup), the next list replaces everything.
- The memory for one namespace is bounded (``cache_budget``). An object that does not fit counts as one that does not
  exist. A later list takes it over once there is room.

Not thread-safe: only the event loop's thread calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from aurora_api import KIND
from aurora_operator.children.metadata import INSTANCE_LABEL
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.cache_budget import CacheBudget
from aurora_operator.observe.stored_objects import PackedObjects, pack, unpack, wakes

SpeculatorKey = tuple[str, str]
"""Namespace and name of a speculator."""
ObjectKey = tuple[str, str, str]
"""Kind, namespace and name of an object."""


K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Scope:
    """The objects that one informer delivers: a kind, in one namespace or (empty) in all."""

    kind: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind} in {self.namespace or 'all namespaces'}"

    def contains(self, key: ObjectKey) -> bool:
        return key[0] == self.kind and self.namespace in ("", key[1])


@dataclass(frozen=True, slots=True)
class _Entry:
    revision: int
    speculator: SpeculatorKey
    packed: bytes


class ClusterCache:
    """Objects by kind, namespace and name, and by speculator.

    Args:
        kinds: the kinds that informers deliver. Objects of other kinds are not stored, because nobody would remove
            them.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self._entries: dict[ObjectKey, _Entry] = {}
        self._by_speculator: dict[SpeculatorKey, set[ObjectKey]] = {}
        self._speculators: dict[str, set[str]] = {}
        """Names by namespace."""
        self._progress: dict[Scope, int] = {}
        self._counts = dict.fromkeys(kinds, 0)
        self.budget = CacheBudget()
        self._refused: set[Scope] = set()
        self._doubted: set[Scope] = set()
        self._left_out: set[tuple[str, str]] = set()
        """Kinds and namespaces with objects that did not fit, since the last list."""

    # reading ---------------------------------------------------------------------------------------------------------

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """A copy of the object, or None when there is none."""
        entry = self._entries.get((kind, namespace, name))
        return None if entry is None else unpack(entry.packed)

    def children(self, namespace: str, name: str) -> PackedObjects:
        """The objects whose labels name this speculator, pods included, as they are now."""
        keys = self._by_speculator.get((namespace, name), ())
        return PackedObjects({(key[0], key[2]): self._entries[key].packed for key in keys if key[0] != KIND})

    def speculators(self) -> list[SpeculatorKey]:
        """All speculators, also those that are being deleted."""
        return sorted((namespace, name) for namespace, names in self._speculators.items() for name in names)

    def speculators_in(self, namespace: str) -> list[SpeculatorKey]:
        """The speculators of one namespace. Does not look at the others."""
        return [(namespace, name) for name in sorted(self._speculators.get(namespace, ()))]

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of stored objects by kind."""
        return self._counts

    def readable(self, namespace: str) -> bool:
        """False while the API server refuses objects of this namespace: the cache does not show what is there."""
        return all(scope.namespace != namespace for scope in self._refused)

    @property
    def refused_namespaces(self) -> int:
        """Number of namespaces that are not readable."""
        return len({scope.namespace for scope in self._refused})

    # our own writes --------------------------------------------------------------------------------------------------

    def put(self, obj: Object) -> None:
        """Store the answer of a write or of a read by name, unless the cache knows something newer."""
        if obj["kind"] not in self._counts:
            return
        key, revision = _key(obj), revision_of(obj)
        known = self._entries.get(key)
        newest = self._progress_at(key) if known is None else max(known.revision, self._progress_at(key))
        if revision > newest:
            self._store(key, revision, obj)

    def compare(self, kind: str, namespace: str, name: str) -> Callable[[Object], None]:
        """Call this before an object is read from the API server, and the result with the answer.

        An answer that is older than what was known before the read shows that the API server's history went back
        (etcd was restored from a backup). The informers' scopes are doubted then.
        """
        key = (kind, namespace, name)
        known = self._entries.get(key)
        progress = {scope: revision for scope, revision in self._progress.items() if scope.contains(key)}

        def check(answer: Object) -> None:
            revision, known_revision = revision_of(answer), 0 if known is None else known.revision
            for scope, complete_until in progress.items():
                missed = known_revision != revision <= complete_until
                if revision < known_revision or missed:
                    self._doubted.add(scope)

        return check

    # what informers deliver ------------------------------------------------------------------------------------------

    def begin_list(self, scope: Scope, revision: int) -> ListUpdate:
        """Begin to take over a list of ``scope`` at ``revision``, page by page."""
        return ListUpdate(self, scope, revision)

    def update(self, scope: Scope, obj: Object) -> set[SpeculatorKey]:
        """Take over an object that was added or modified. Returns the speculators to wake."""
        revision = revision_of(obj)
        self.advance(scope, revision)
        return self._update(_key(obj), revision, obj)

    def delete(self, scope: Scope, obj: Object) -> set[SpeculatorKey]:
        """Take over a deletion, or the loss of the labels that ``scope`` selects. Returns the speculators to wake.

        ``obj`` has the resourceVersion of its deletion. An object of the same name that we created since is newer.
        """
        key, revision = _key(obj), revision_of(obj)
        self.advance(scope, revision)
        entry = self._entries.get(key)
        return self._remove(key) if entry is not None and entry.revision <= revision else set()

    def advance(self, scope: Scope, revision: int) -> None:
        """Remember that ``scope`` is complete up to ``revision`` (a bookmark)."""
        self._progress[scope] = max(revision, self._progress.get(scope, 0))

    def progress(self, scope: Scope) -> int:
        """The revision up to which ``scope`` is complete; 0 before its first list."""
        return self._progress.get(scope, 0)

    def refuse(self, scope: Scope) -> bool:
        """The API server does not let us read the scope, which is a namespace's. Returns whether that is new."""
        is_new = scope not in self._refused
        self._refused.add(scope)
        return is_new

    def admit(self, scope: Scope) -> bool:
        """The API server let us read the scope. Returns whether it was refused before."""
        was_refused = scope in self._refused
        self._refused.discard(scope)
        return was_refused

    def is_doubted(self, scope: Scope) -> bool:
        """Whether the API server contradicted what the cache holds of ``scope``, and no list has begun since."""
        return scope in self._doubted

    def left_out(self, scope: Scope) -> bool:
        """Whether objects of ``scope`` did not fit since its last list, so that another list may find room."""
        return any(scope.contains((kind, namespace, "")) for kind, namespace in self._left_out)

    # -----------------------------------------------------------------------------------------------------------------

    def _progress_at(self, key: ObjectKey) -> int:
        everywhere, here = Scope(key[0]), Scope(key[0], key[1])
        return max(self._progress.get(everywhere, 0), self._progress.get(here, 0))

    def _update(self, key: ObjectKey, revision: int, obj: Object, *, force: bool = False) -> set[SpeculatorKey]:
        before = self._entries.get(key)
        if before is not None and revision <= before.revision and not force:
            return set()
        after = self._store(key, revision, obj)
        if after is None:
            return set() if before is None else self._remove(key)
        known = None if before is None else unpack(before.packed)
        if not wakes(known, unpack(after.packed)):
            return set()
        return {after.speculator} if before is None else {before.speculator, after.speculator}

    def _store(self, key: ObjectKey, revision: int, obj: Object) -> _Entry | None:
        """Store an object. None when it does not fit: then nothing changes."""
        before = self._entries.get(key)
        entry = _Entry(revision, _speculator_of(obj), pack(obj))
        if not self._fits(key, entry, before):
            self._left_out.add(key[:2])
            return None
        self._count_bytes(key, entry, before)
        if before is None:
            self._counts[key[0]] += 1
            if key[0] == KIND:
                self._speculators.setdefault(key[1], set()).add(key[2])
        else:
            self._unindex(key, before.speculator)
        self._entries[key] = entry
        self._by_speculator.setdefault(entry.speculator, set()).add(key)
        return entry

    def _fits(self, key: ObjectKey, entry: _Entry, before: _Entry | None) -> bool:
        kind, namespace, name = key
        if kind == KIND:
            return self.budget.allows_speculator(namespace, name, entry.packed)
        speculators = len(self._speculators.get(namespace, ()))
        replaced = None if before is None else before.packed
        return not namespace or self.budget.allows_child(namespace, entry.packed, replaced, speculators)

    def _count_bytes(self, key: ObjectKey, after: _Entry | None, before: _Entry | None) -> None:
        if key[0] != KIND:
            self.budget.count(
                key[1], None if after is None else after.packed, None if before is None else before.packed
            )

    def _remove(self, key: ObjectKey) -> set[SpeculatorKey]:
        entry = self._entries.pop(key)
        self._count_bytes(key, None, entry)
        self._counts[key[0]] -= 1
        self._unindex(key, entry.speculator)
        if key[0] == KIND:
            _discard(self._speculators, key[1], key[2])
        return {entry.speculator}

    def _unindex(self, key: ObjectKey, speculator: SpeculatorKey) -> None:
        _discard(self._by_speculator, speculator, key)


class ListUpdate:
    """The pages of one list. Pages are stored as they come, so that a large list is never held in memory as a whole.

    An update that is never finished removes nothing, and leaves the scope's progress as it was.
    """

    def __init__(self, cache: ClusterCache, scope: Scope, revision: int) -> None:
        self._cache, self._scope, self._revision = cache, scope, revision
        self._went_back = revision < cache.progress(scope)
        self._present: set[ObjectKey] = set()
        cache._doubted.discard(scope)
        cache._left_out = {pair for pair in cache._left_out if not scope.contains((*pair, ""))}

    def add(self, page: Iterable[Object]) -> set[SpeculatorKey]:
        """Store a page. Returns the speculators to wake."""
        woken = set[SpeculatorKey]()
        for obj in page:
            key = _key(obj)
            self._present.add(key)
            woken |= self._cache._update(key, revision_of(obj), obj, force=self._went_back)
        return woken

    def finish(self) -> set[SpeculatorKey]:
        """Remove the objects that no page contained. Returns the speculators to wake."""
        cache, woken = self._cache, set[SpeculatorKey]()
        cache._progress[self._scope] = self._revision
        absent = [key for key in cache._entries if self._scope.contains(key) and key not in self._present]
        for key in absent:
            if self._went_back or cache._entries[key].revision <= self._revision:
                woken |= cache._remove(key)
        return woken


def _discard(index: dict[K, set[V]], key: K, value: V) -> None:
    """Remove ``value`` from the index, and ``key`` once it has no values."""
    index[key].discard(value)
    if not index[key]:
        del index[key]


def revision_of(obj: Object) -> int:
    """The object's resourceVersion as a number."""
    return int(obj["metadata"]["resourceVersion"])


def _key(obj: Object) -> ObjectKey:
    return obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _speculator_of(obj: Object) -> SpeculatorKey:
    """The speculator that an object belongs to. A namespace belongs to none: it has itself and an empty name."""
    metadata = obj["metadata"]
    name = metadata["name"] if obj["kind"] == KIND else (metadata.get("labels") or {}).get(INSTANCE_LABEL, "")
    return metadata.get("namespace") or metadata["name"], name

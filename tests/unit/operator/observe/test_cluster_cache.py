"""The cache ends in the API server's state, in whatever order lists, watch events and the answers of writes arrive."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aurora_operator.children.metadata import INSTANCE_LABEL
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.cluster_cache import ClusterCache, ListUpdate, Scope, revision_of
from tests.example_count import example_count

PODS = Scope("Pod")
NAMES = ("a", "b", "c")


def pod(name: str, revision: int, *, instance: str = "chat", **status: Any) -> Object:
    labels = {INSTANCE_LABEL: instance}
    metadata = {"name": name, "namespace": "team", "labels": labels, "resourceVersion": str(revision)}
    return {"kind": "Pod", "metadata": metadata, "status": status}


def speculator(namespace: str, name: str, revision: int) -> Object:
    metadata = {"namespace": namespace, "name": name, "resourceVersion": str(revision)}
    return {"kind": "AuroraSpeculator", "metadata": metadata}


@dataclass
class ModelApiServer:
    """A model of the API server: objects, one counter of revisions, and a history of events in order."""

    revision: int = 10
    objects: dict[str, Object] = field(default_factory=dict)
    history: list[tuple[int, str, Object]] = field(default_factory=list)

    def write(self, name: str, instance: str = "chat") -> Object:
        self.revision += 1
        obj = pod(name, self.revision, instance=instance)
        self.history.append((self.revision, "MODIFIED" if name in self.objects else "ADDED", obj))
        self.objects[name] = obj
        return obj

    def delete(self, name: str) -> None:
        self.revision += 1
        gone = self.objects.pop(name)
        last = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.revision)}}
        self.history.append((self.revision, "DELETED", last))


class AnyInterleaving(RuleBasedStateMachine):
    """One informer and several writers. Answers of writes may come at any time, also long after the next deletion."""

    def __init__(self) -> None:
        super().__init__()
        self.server = ModelApiServer()
        self.cache = ClusterCache(["Pod"])
        self.answers: list[Object] = []
        self.seen_revision: int | None = None
        """Where the watch stands; None: the informer must list."""
        self.list: tuple[ListUpdate, int, list[Object]] | None = None
        """A list under way: its revision and the objects of the pages that are still to come."""
        self.read_back: dict[str, int] = {}
        """Revisions of own writes whose answers were put back."""

    @rule(name=st.sampled_from(NAMES))
    def another_client_writes(self, name: str) -> None:
        self.server.write(name)

    @rule(name=st.sampled_from(NAMES))
    def another_client_deletes(self, name: str) -> None:
        if name in self.server.objects:
            self.server.delete(name)

    @rule(name=st.sampled_from(NAMES))
    def we_write(self, name: str) -> None:
        self.answers.append(self.server.write(name))

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def an_answer_arrives(self, data: st.DataObject) -> None:
        answer = self.answers.pop(data.draw(st.integers(0, len(self.answers) - 1)))
        self.cache.put(answer)
        name = answer["metadata"]["name"]
        self.read_back[name] = max(self.read_back.get(name, 0), revision_of(answer))

    @precondition(lambda self: self.seen_revision is not None)
    @rule()
    def the_watch_delivers_an_event(self) -> None:
        self._deliver()

    @precondition(lambda self: self.seen_revision is not None)
    @rule()
    def a_bookmark_arrives(self) -> None:
        while self._deliver():
            pass
        self.seen_revision = self.server.revision
        self.cache.advance(PODS, self.server.revision)

    @rule()
    def the_watch_is_cut_and_its_history_is_gone(self) -> None:
        self.seen_revision = self.list = None

    @precondition(lambda self: self.seen_revision is None and self.list is None)
    @rule()
    def a_list_begins(self) -> None:
        revision = self.server.revision
        self.list = (self.cache.begin_list(PODS, revision), revision, list(self.server.objects.values()))

    @precondition(lambda self: self.list is not None)
    @rule()
    def a_page_arrives(self) -> None:
        assert self.list is not None
        update, revision, rest = self.list
        update.add(rest[:1])
        del rest[:1]
        if not rest:
            update.finish()
            self.seen_revision, self.list = revision, None

    @invariant()
    def an_own_write_is_read_until_something_newer_is_known(self) -> None:
        for name, revision in self.read_back.items():
            known = self.cache.get("Pod", "team", name)
            newest = self.cache.progress(PODS) if known is None else revision_of(known)
            assert newest >= revision

    @invariant()
    def the_index_and_the_counts_agree_with_the_objects(self) -> None:
        present = [name for name in NAMES if self.cache.get("Pod", "team", name) is not None]
        assert sorted(obj["metadata"]["name"] for obj in self.cache.children("team", "chat").values()) == present
        assert self.cache.counts["Pod"] == len(present)

    def _deliver(self) -> bool:
        for revision, kind, obj in self.server.history:
            if self.seen_revision is not None and revision > self.seen_revision:
                take = self.cache.delete if kind == "DELETED" else self.cache.update
                take(PODS, obj)
                self.seen_revision = revision
                return True
        return False

    def teardown(self) -> None:
        """Let everything that is under way arrive: the cache then holds exactly what the API server has."""
        for answer in self.answers:
            self.cache.put(answer)
        if self.list is None and self.seen_revision is None:
            self.a_list_begins()
        while self.list is not None:
            self.a_page_arrives()
        while self._deliver():
            pass
        cached = {name: obj for name in NAMES if (obj := self.cache.get("Pod", "team", name)) is not None}
        assert {name: revision_of(obj) for name, obj in cached.items()} == {
            name: revision_of(obj) for name, obj in self.server.objects.items()
        }


TestAnyInterleaving = AnyInterleaving.TestCase
TestAnyInterleaving.settings = settings(max_examples=example_count(300), stateful_step_count=40, deadline=None)


def test_a_late_answer_does_not_bring_a_deleted_object_back() -> None:
    cache = ClusterCache(["Pod"])
    cache.begin_list(PODS, 5).finish()
    cache.update(PODS, pod("a", 6))
    cache.delete(PODS, pod("a", 8))
    cache.put(pod("a", 7))
    assert cache.get("Pod", "team", "a") is None


def test_a_list_keeps_what_was_written_after_it() -> None:
    cache = ClusterCache(["Pod"])
    cache.put(pod("a", 7))
    cache.begin_list(PODS, 6).finish()
    assert cache.get("Pod", "team", "a") is not None
    cache.begin_list(PODS, 7).finish()
    assert cache.get("Pod", "team", "a") is None


def test_a_deletion_that_was_missed_wakes_the_speculator() -> None:
    cache = ClusterCache(["Pod"])
    first = cache.begin_list(PODS, 5)
    assert first.add([pod("a", 3), pod("b", 4, instance="other")]) == {("team", "chat"), ("team", "other")}
    assert first.finish() == set()
    again = cache.begin_list(PODS, 9)
    assert again.add([pod("a", 3)]) == set(), "an unchanged object wakes nobody"
    assert again.finish() == {("team", "other")}


def test_a_list_that_was_cut_short_removes_nothing() -> None:
    cache = ClusterCache(["Pod"])
    cache.put(pod("a", 3))
    cache.begin_list(PODS, 9).add([pod("b", 4)])
    assert cache.counts["Pod"] == 2
    assert cache.progress(PODS) == 0


def test_a_history_that_went_back_replaces_everything() -> None:
    """An etcd that was restored from a backup has lower revisions than the cache."""
    cache = ClusterCache(["Pod"])
    cache.begin_list(PODS, 100).finish()
    for name in ("a", "b"):
        cache.update(PODS, pod(name, 101, phase="Running"))
    restored = cache.begin_list(PODS, 50)
    restored.add([pod("a", 40, phase="Pending")])
    restored.finish()
    assert cache.get("Pod", "team", "b") is None
    known = cache.get("Pod", "team", "a")
    assert known is not None
    assert known["status"] == {"phase": "Pending"}
    cache.update(PODS, pod("a", 51, phase="Running"))
    assert revision_of(cache.get("Pod", "team", "a") or {}) == 51


@pytest.mark.parametrize(
    ("answer", "doubted"),
    [
        (8, False),  # nothing changed since the informer delivered it
        (12, False),  # a change that the informer has not delivered yet
        (4, True),  # older than the cache
        (9, True),  # not newer than the informer's progress, and not what the informer delivered
    ],
)
def test_an_answer_that_only_another_history_explains_raises_doubts_until_the_next_list(
    answer: int, *, doubted: bool
) -> None:
    cache = ClusterCache(["Pod"])
    listed = cache.begin_list(PODS, 10)
    listed.add([pod("a", 8)])
    listed.finish()
    check = cache.compare("Pod", "team", "a")
    cache.update(PODS, pod("a", 15))  # delivered while the answer was under way
    check(pod("a", answer))
    assert cache.is_doubted(PODS) is doubted
    cache.begin_list(PODS, 20)
    assert not cache.is_doubted(PODS)


def test_one_namespaces_list_removes_nothing_of_another() -> None:
    cache = ClusterCache(["Pod"])
    cache.put(pod("a", 3))
    cache.begin_list(Scope("Pod", "elsewhere"), 9).finish()
    assert cache.counts["Pod"] == 1
    cache.begin_list(Scope("Pod", "team"), 9).finish()
    assert cache.counts["Pod"] == 0


def test_objects_of_kinds_without_an_informer_are_not_stored() -> None:
    cache = ClusterCache(["Pod"])
    cache.put({**pod("a", 3), "kind": "Event"})
    assert not cache.children("team", "chat")


def test_readers_get_copies() -> None:
    cache = ClusterCache(["Pod"])
    cache.put(pod("a", 3, phase="Running"))
    first = cache.get("Pod", "team", "a")
    assert first is not None
    first["status"]["phase"] = "changed by a reader"
    second = cache.get("Pod", "team", "a")
    assert second is not None
    assert second["status"] == {"phase": "Running"}


def test_an_object_whose_label_changes_moves_and_wakes_both_speculators() -> None:
    cache = ClusterCache(["Pod"])
    cache.begin_list(PODS, 5).finish()
    cache.update(PODS, pod("a", 6))
    woken = cache.update(PODS, pod("a", 7, instance="other"))
    assert woken == {("team", "chat"), ("team", "other")}
    assert not cache.children("team", "chat")
    assert len(cache.children("team", "other")) == 1


def test_a_speculator_is_not_its_own_child() -> None:
    cache = ClusterCache(["AuroraSpeculator"])
    cache.put({**pod("chat", 3), "kind": "AuroraSpeculator"})
    assert cache.speculators() == [("team", "chat")]
    assert not cache.children("team", "chat")


@pytest.mark.parametrize("kind", ["Pod", "Deployment"])
def test_bookkeeping_of_field_managers_is_not_stored(kind: str) -> None:
    cache = ClusterCache([kind])
    obj = {**pod("a", 3), "kind": kind, "spec": {"nodeName": "n", "containers": [{"name": "sglang"}]}}
    obj["metadata"]["managedFields"] = [{"manager": "someone"}]
    cache.put(obj)
    stored = cache.get(kind, "team", "a")
    assert stored is not None
    assert "managedFields" not in stored["metadata"]
    assert stored["spec"] == ({"nodeName": "n"} if kind == "Pod" else obj["spec"])


def test_speculators_are_found_by_namespace_without_a_look_at_the_others() -> None:
    cache, scope = ClusterCache(["AuroraSpeculator", "Pod"]), Scope("AuroraSpeculator")
    for revision, (namespace, name) in enumerate([("b", "two"), ("a", "one"), ("b", "one"), ("b", "three")], 1):
        cache.put(speculator(namespace, name, revision))
    cache.put(pod("a", 5))
    assert cache.speculators_in("b") == [("b", "one"), ("b", "three"), ("b", "two")]
    assert cache.speculators() == [("a", "one"), *cache.speculators_in("b")]
    for name, revision in (("two", 6), ("one", 7), ("three", 8)):
        cache.delete(scope, speculator("b", name, revision))
    assert cache.speculators_in("b") == cache.speculators_in("c") == []
    assert cache.speculators() == [("a", "one")]

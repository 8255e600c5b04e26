"""The drafts in a real S3 store stay bounded, and those that anybody may need keep their weights."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from aurora_cli.verification import Verification
from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.evidence_records import VerdictKind
from aurora_runtime.errors import DraftRefused
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent.draft_cache import DraftCache
from aurora_runtime.serving.pod_files import PodFolder
from aurora_runtime.training.lineage import utc_now
from aurora_runtime.training.state.draft_expiry import LOOK_SECONDS, DraftExpiry
from aurora_store import Keys, ObjectStore
from aurora_store.errors import DraftExpired, StoreError
from aurora_store.keys import checkpoint_version
from tests.assets.s3 import S3, seaweedfs
from tests.assets.signing import ROOT_OWNER
from tests.assets.trainer_output import publish_draft
from tests.check_store import check_store
from tests.unit.fakes import lineage
from tests.unit.operator.worlds import evidence

LIMIT, VERSIONS = 5, 200


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with seaweedfs() as server:
        ObjectStore(server.config()).ensure_bucket()
        yield server


class History:
    """A store with a history of drafts. Each look of the trainer is ``age`` after the real time."""

    def __init__(self, s3: S3, name: str, folder: Path) -> None:
        self.registry, self.folder = PodRegistry(ObjectStore(s3.config(root=f"aurora/default/{name}-01234567"))), folder
        self.age, self.seconds = timedelta(days=2), 0.0
        self.expiry = self.started()
        (folder / "config.json").write_text("{}")
        self.registry.create_lineage(lineage())
        self.publish(0)
        self.epoch, self.active = 0, 0
        self.previous: int | None = None
        self.advance(0, ChannelReason.INITIAL)

    def started(self) -> DraftExpiry:
        """The expiry of a trainer that starts now."""
        return DraftExpiry(self.registry, LIMIT, clock=lambda: self.seconds, utc=lambda: utc_now() + self.age)

    def publish(self, version: int) -> None:
        (self.folder / "model.safetensors").write_bytes(b"weights %d" % version)
        publish_draft(self.registry, self.folder, version)

    def measure(self, version: int, kind: VerdictKind) -> None:
        candidate, active = (self.registry.registration(number).digest for number in (version, self.active))
        self.registry.put_evidence(
            evidence(version, kind, active=self.active, candidate_digest=candidate, active_digest=active)
        )

    def advance(self, version: int, reason: ChannelReason, rejected: tuple[int, ...] = ()) -> None:
        previous = None if reason is ChannelReason.INITIAL else self.active
        self.epoch, self.active, self.previous = self.epoch + 1, version, previous
        proof = Keys.evidence(version, 1) if reason is ChannelReason.PROMOTED else None
        self.registry.advance_channel(
            Channel(
                epoch=self.epoch,
                lineage=1,
                active=version,
                previous=previous,
                reason=reason,
                evidence=proof,
                rejected=rejected,
                created=utc_now(),
                owner=ROOT_OWNER,
            )
        )

    def promote(self, version: int) -> None:
        self.publish(version)
        self.measure(version, VerdictKind.PASS)
        self.advance(version, ChannelReason.PROMOTED)

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.expiry.look()
            self.seconds += LOOK_SECONDS

    @property
    def stored(self) -> set[int]:
        """The versions of which the store holds any file."""
        keys = self.registry.objects.list(Keys.CHECKPOINTS)
        return {version for key in keys if (version := checkpoint_version(key.rpartition("/")[0] + "/")) is not None}

    def assert_sound(self) -> None:
        assert check_store(self.registry.objects.config, timedelta(0)).violations == []
        check = Verification(self.registry.objects)
        check.run()
        assert check.faults == []


@pytest.fixture(name="history")
def _history(s3: S3, tmp_path: Path, request: pytest.FixtureRequest) -> History:
    return History(s3, request.node.name.replace("_", "-")[:40], tmp_path)


def test_200_versions_leave_the_weights_that_somebody_may_need(history: History) -> None:
    """Every fifth version passes and is rolled out, and every second of these is rolled back."""
    most, rejected = 0, []
    for version in range(1, VERSIONS + 1):
        if version % 5:
            history.publish(version)
            history.measure(version, VerdictKind.REJECT)
        else:
            history.promote(version)
        if version % 10 == 0:
            rejected.append(version)
            assert history.previous is not None
            history.advance(history.previous, ChannelReason.ROLLED_BACK, tuple(rejected))
        history.look()
        most = max(most, len(history.stored))
        assert {0, version, history.active, history.previous or 0} <= history.stored
    history.look(2)
    history.assert_sound()
    assert history.stored == {0, 165, 175, 185, 195, 200}, "200 was measured last, and is the previous version"
    assert most <= LIMIT + 3, "an expired version waits for the next look"
    assert history.registry.expired_versions() == set(range(VERSIONS + 1)) - history.stored
    assert len(list(history.registry.registrations())) == VERSIONS + 1
    assert len(list(history.registry.objects.list(Keys.EVIDENCE))) == VERSIONS


def test_nothing_expires_within_a_day_or_while_it_may_be_measured(history: History) -> None:
    history.promote(1)
    history.promote(2)
    for version in (3, 4, 5):
        history.publish(version)
    history.measure(3, VerdictKind.INCONCLUSIVE)
    history.look(3)
    assert history.registry.expired_versions() == set(), "3 may be measured again, 4 and 5 for the first time"
    history.measure(5, VerdictKind.REJECT)
    history.age = timedelta(hours=23)
    history.look(3)
    assert history.registry.expired_versions() == set()
    history.age = timedelta(hours=25)
    history.look()
    assert history.registry.expired_versions() == {3, 4}


def test_the_record_comes_a_look_before_the_deletion_and_the_serving_weights_stay(history: History) -> None:
    for version in range(1, 9):
        history.promote(version)
    history.look()
    assert history.registry.expired_versions() == {1, 2, 3}
    assert history.stored == set(range(9))
    history.expiry = history.started()
    history.look()
    assert history.stored == set(range(9)), "a restarted trainer waits for another look"
    history.advance(2, ChannelReason.PINNED)  # by an operator that had not seen the record
    history.look(2)
    assert history.stored == {0, 2, 5, 6, 7, 8}, "2 serves, so 4 is beyond the limit"
    history.assert_sound()


def test_an_expired_draft_is_refused_by_name(history: History, tmp_path: Path) -> None:
    for version in range(1, 9):
        history.promote(version)
    history.look(2)
    registration = history.registry.registration(1)
    with pytest.raises(DraftExpired, match="draftHistoryLimit"):
        history.registry.checkpoint(registration)
    folder = PodFolder(tmp_path / "pod")
    folder.drafts.mkdir(parents=True)
    folder.lineage.write_bytes(lineage().to_json())
    with pytest.raises(DraftRefused, match="draftHistoryLimit"):
        DraftCache(folder, history.registry).stage(1, registration.digest)


def test_a_kill_at_any_deletion_leaves_a_sound_store(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in range(1, 9):
        history.promote(version)
    history.look()
    delete, left = history.registry.objects.delete, [0]

    def killed(key: str) -> None:
        if left[0] == 0:
            raise StoreError("killed")
        left[0] -= 1
        delete(key)

    monkeypatch.setattr(history.registry.objects, "delete", killed)
    for left[0] in range(6):
        history.look()
        history.assert_sound()
    monkeypatch.undo()
    history.look()
    history.assert_sound()
    assert history.stored == {0, 4, 5, 6, 7, 8}


def test_what_cannot_be_read_does_not_expire(history: History) -> None:
    for version in range(1, 9):
        history.promote(version)
    objects, key = history.registry.objects, Keys.evidence(5, 1)
    objects.delete(Keys.registration(1))
    whole = objects.get(key)
    objects.put(key, b"{")
    history.look()
    assert history.registry.expired_versions() == set()
    objects.put(key, whole)
    history.look()
    assert history.registry.expired_versions() == {2, 3}

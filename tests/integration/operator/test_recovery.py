"""Two speculators on one root of a real S3: the new one takes the root over, and the former one changes nothing more.

The operator's side is the real store reader and the real plan. The pods' side is the real fenced store and the real
trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aurora_protocol.draft_records import ChannelReason
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.lineage import open_lineage, utc_now
from aurora_store import FencedObjectStore, Keys
from aurora_store.errors import NotRootOwner, ObjectExists
from aurora_store.keys import owner_id
from tests.assets.s3 import S3
from tests.assets.trainer_output import put_trainer_state
from tests.integration.operator.recovery_rig import NEW, OLD, THIRD, Speculator, root, s3
from tests.unit.operator.worlds import channel, evidence, lineage, registration, root_owner
from tests.unit.training import tiny
from tests.unit.training.trainer_rig import Traffic, TrainerRig

__all__ = ["root", "s3"]


def test_everything_goes_on_after_a_takeover(s3: S3, root: str) -> None:
    old, new = Speculator(s3, OLD, root), Speculator(s3, NEW, root)
    state = put_trainer_state(old.registry, consumed=("traces/a.json",))
    new.look()
    view = new.view()
    assert view.channel is not None
    assert (view.channel.epoch, view.channel.active, view.channel.reason) == (3, 1, ChannelReason.RESTORED)
    assert new.storage_reason() == "Ready"
    assert sorted(view.registrations) == [0, 1, 2]
    assert [e.version for e in view.evidence] == [1]
    assert new.registry.trainer_state_record() == state
    new.registry.register(registration(3))
    assert new.registry.last_version() == 3
    assert new.look(rollout={"pin": 0}).advance is not None
    assert new.newest_channel().owner.id == owner_id(NEW.uid), "later records keep the owner"
    assert new.newest_channel().active == 0


def test_the_same_name_in_a_cluster_that_was_built_anew_goes_on_and_another_name_waits_for_a_person(
    s3: S3, root: str
) -> None:
    again = replace(OLD, uid="5ec0d000-0000")
    stranger = replace(NEW, adopts=False)
    assert Speculator(s3, stranger, root).look().advance is None
    assert Speculator(s3, stranger, root).storage_reason() == "PathRefused"
    rebuilt = Speculator(s3, again, root)
    rebuilt.look()
    assert (rebuilt.newest_channel().active, rebuilt.storage_reason()) == (1, "Ready")
    assert rebuilt.newest_channel().owner.id == "5ec0d000"
    rebuilt.pods.probe()


def test_two_clusters_that_begin_one_path_do_not_both_write(s3: S3) -> None:
    root = "aurora/two-clusters/chat"
    one, other = (Speculator(s3, replace(OLD, uid=uid), root) for uid in ("11110000-0", "22220000-0"))
    one.registry.create_lineage(lineage().model_copy(update={"draft_vocab_size": 16}))
    one.registry.register(registration(0))
    claims = [one.plan().advance, other.plan().advance]
    assert claims[0] is not None
    assert claims[1] is not None
    one.reader.advance(claims[0])
    one.look()
    with pytest.raises(ObjectExists):
        other.reader.advance(claims[1])
    with pytest.raises(NotRootOwner):
        other.pods.probe()
    for _ in range(3):
        other.look()
        one.look()
    assert (one.storage_reason(), other.storage_reason()) == ("TakenOver", "Ready")
    assert other.newest_channel().epoch == 2, "one takeover, and no more"


def test_the_former_speculator_stops_everywhere_and_says_why(s3: S3, root: str) -> None:
    old, new = Speculator(s3, OLD, root), Speculator(s3, NEW, root)
    old.registry.objects.put("probe/x", b"1")
    old.look()
    assert old.storage_reason() == "Ready"
    new.look()
    assert old.storage_reason() == "TakenOver"
    assert old.look(rollout={"pin": 0}).advance is None
    writes: list[Callable[[], object]] = [
        lambda: old.registry.register(registration(3)),
        lambda: old.registry.put_evidence(evidence(2)),
        lambda: put_trainer_state(old.registry, epoch=9),
        lambda: old.registry.create_lineage(lineage()),
    ]
    for write in writes:
        with pytest.raises(NotRootOwner, match=r"AuroraSpeculator green/chat \(uid 4e300000…\)"):
            write()
    old.later()
    key = next(iter(old.pods.list(Keys.EVIDENCE)))
    with pytest.raises(NotRootOwner):
        tiny.put_shard(old.registry, 7, [tiny.trace(0)])
    with pytest.raises(NotRootOwner):
        old.pods.delete(key)
    assert key in old.pods.list(Keys.EVIDENCE)
    assert old.registry.registration(1).version == 1, "reads are never refused, so that its pods serve on"


def test_an_operator_that_planned_before_the_takeover_loses_the_race_for_the_epoch(s3: S3, root: str) -> None:
    old, new = Speculator(s3, OLD, root), Speculator(s3, NEW, root)
    stale = old.plan(rollout={"pin": 0}).advance
    assert stale is not None
    new.look()
    with pytest.raises(ObjectExists):
        old.reader.advance(stale)
    assert new.newest_channel().active == 1


def test_a_takeover_that_was_planned_before_the_formers_last_decision_is_made_again(s3: S3, root: str) -> None:
    old, new = Speculator(s3, OLD, root), Speculator(s3, NEW, root)
    claim = new.plan().advance
    assert claim is not None
    assert old.look(rollout={"pin": 0}).advance is not None
    with pytest.raises(ObjectExists):
        new.reader.advance(claim)
    new.look()
    assert new.newest_channel().active == 0, "the last decision of the former owner is kept"
    assert new.storage_reason() == "Ready"


def test_two_speculators_with_one_path_do_not_take_it_from_each_other(s3: S3, root: str) -> None:
    old, new, third = (Speculator(s3, owner, root) for owner in (OLD, NEW, THIRD))
    old.look()
    claims = [new.plan().advance, third.plan().advance]
    assert claims[0] is not None
    assert claims[1] is not None
    new.reader.advance(claims[0])
    new.look()
    with pytest.raises(ObjectExists):
        third.reader.advance(claims[1])
    assert third.look().advance is not None
    for _ in range(3):
        assert new.look().advance is None
        assert third.look().advance is None
    assert (old.storage_reason(), new.storage_reason(), third.storage_reason()) == ("TakenOver", "TakenOver", "Ready")


def test_an_operator_that_dies_after_the_takeover_finds_itself_the_owner(s3: S3, root: str) -> None:
    Speculator(s3, NEW, root).look()
    again = Speculator(s3, NEW, root)
    assert again.look().advance is None
    assert again.storage_reason() == "Ready"


def test_pods_of_the_new_speculator_wait_for_the_takeover(s3: S3, root: str) -> None:
    new = Speculator(s3, NEW, root)
    with pytest.raises(NotRootOwner, match=r"belongs to AuroraSpeculator blue/chat \(uid 01d00000"):
        new.pods.probe()
    new.look()
    new.pods.probe()


def trainer_rig(folder: Path, registry: PodRegistry) -> TrainerRig:
    """The real trainer with small limits on ``registry``. It saves after every shard."""
    rig = TrainerRig(folder)
    rig.registry = registry
    rig.lineage = open_lineage(registry, rig.target, tiny.DRAFT_SPEC, utc_now)
    return rig


def test_the_trainer_of_the_new_speculator_resumes_where_the_former_one_ended(s3: S3, tmp_path: Path) -> None:
    root = "aurora/resumes/chat"
    old, new = Speculator(s3, OLD, root), Speculator(s3, NEW, root)
    former = trainer_rig(tmp_path, old.registry)
    former.trainer(Traffic(old.registry, 2)).run()
    old.registry.advance_channel(channel(0, owner=root_owner(OLD)))
    new.reader.advance(channel(0, epoch=2, owner=root_owner(NEW)))
    resumed = trainer_rig(tmp_path, new.registry).trainer(Traffic(new.registry, 1))
    assert resumed.learning.ledger.total == 2
    steps = resumed.learning.session.steps
    assert steps > 0
    resumed.run()
    assert resumed.learning.ledger.total == 3
    assert resumed.learning.session.steps > steps


def test_a_trainer_on_a_lost_node_and_its_successor_train_no_shard_twice(s3: S3, tmp_path: Path) -> None:
    registry = PodRegistry(FencedObjectStore(s3.config(root="aurora/lost-node/chat")))
    rig = trainer_rig(tmp_path, registry)
    rig.trainer(Traffic(registry, 1)).run()
    first = registry.trainer_state_record()
    assert first is not None
    per_shard = first.step
    lost, successor = (rig.trainer(Traffic(registry, 1)) for _ in range(2))
    lost.learning.session.generator.manual_seed(7)  # equal states at equal times would be one state
    successor.run()
    with pytest.raises(ObjectExists):
        lost.run()
    restarted, stale = (rig.trainer(Traffic(registry, 1)) for _ in range(2))
    stale.learning.session.generator.manual_seed(7)
    restarted.run()  # the container of the lost node restarts, and is first this time
    with pytest.raises(ObjectExists):
        stale.run()
    rig.trainer(Traffic(registry, 0)).run()
    last = registry.trainer_state_record()
    assert last is not None
    shards = list(registry.list_shards(1).data_bytes)
    trained = [*last.retired, *last.consumed]
    assert len(trained) == len(set(trained)), "no shard counts twice"
    assert set(trained) <= set(shards)
    assert last.step == per_shard * len(trained), "the weights hold each shard once"

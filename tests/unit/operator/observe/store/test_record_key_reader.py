"""The signing keys are read once, kept small, and read again after a doubt."""

from __future__ import annotations

from typing import Any

from aurora_operator.children.access import new_signing_keys
from aurora_operator.children.metadata import signing_keys_name
from aurora_operator.errors import KubernetesError, NotFound
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.secret_values import SecretReader
from aurora_operator.observe.store.record_key_reader import DOUBT_SECONDS, RecordKeyReader
from aurora_operator.observe.store.signed_records import RecordKeys
from aurora_protocol.signatures import KeyName, all_keys
from tests.assets.signing import KEYS, secret_data
from tests.unit.operator.worlds import OWNER

NAME = signing_keys_name(OWNER)


class Rig:
    """A fake API server and a clock that a test moves."""

    def __init__(self, data: dict[str, str] | None = None, *, owner: str = OWNER.uid) -> None:
        self.data, self.owner, self.status = data, owner, 0
        self.reads, self.now = 0, 1000.0
        api: Any = self
        self.reader = RecordKeyReader(SecretReader(api, "team", lambda: self.now), lambda: self.now)

    def get(self, _kind: object, _namespace: str, name: str) -> dict[str, Any]:
        self.reads += 1
        if self.status:
            raise KubernetesError("no", self.status)
        if self.data is None:
            raise NotFound(name, 404)
        owners = [{"uid": self.owner, "controller": True}]
        metadata = {"name": name, "resourceVersion": str(self.reads), "ownerReferences": owners}
        return {"kind": "Secret", "metadata": metadata, "data": self.data}

    async def find(self) -> RecordKeys | StoreView | None:
        return await self.reader.find(OWNER)


async def test_keys_are_read_once_and_never_shown() -> None:
    rig = Rig(secret_data(trusted_record="seven"))
    for _ in range(3):
        rig.now += 3600
        keys = await rig.find()
        assert isinstance(keys, RecordKeys)
        assert (keys.operator, keys.trusted_record) == (KEYS[KeyName.OPERATOR], "seven")
        assert all(key.decode() not in repr(keys) for key in KEYS.values())
    assert rig.reads == 1


async def test_a_lost_secret_is_noticed_after_a_doubt_and_read_at_once_after_it_was_made_anew() -> None:
    rig = Rig(secret_data())
    await rig.find()
    rig.data = None
    rig.reader.doubt()
    assert isinstance(await rig.find(), RecordKeys), "a moment after the read there is no doubt"
    rig.now += DOUBT_SECONDS
    rig.reader.doubt()
    assert await rig.find() is None
    rig.data = secret_data(trusted_record="nine", keys=all_keys(b"new"))
    rig.reader.made(OWNER)
    assert rig.reader.expected
    found = await rig.find()
    assert isinstance(found, RecordKeys)
    assert found.trusted_record == "nine"
    assert not rig.reader.expected


async def test_a_secret_that_is_not_what_the_operator_wrote_is_named_and_not_used() -> None:
    changed = secret_data(keys={**KEYS, KeyName.EVIDENCE: b"x"})
    for rig in (
        Rig({}),
        Rig(changed),
        Rig({name: one for name, one in secret_data().items() if name != "trusted-record"}),
    ):
        found = await rig.find()
        assert isinstance(found, StoreView)
        assert found.reason == "SigningKeysMissing"
        assert NAME in found.error


async def test_the_secret_of_somebody_else_is_a_taken_name_and_nobody_is_told_to_delete_it() -> None:
    rig = Rig(secret_data(), owner="x")
    found = await rig.find()
    assert isinstance(found, StoreView)
    assert found.name_taken == (f"Secret {NAME}",)
    assert found.reason == "SigningKeysMissing"
    assert "delete" not in found.error
    rig.data = None
    rig.now += 3
    assert await rig.find() is None, "once the name is free, the operator makes its own"


async def test_a_secret_that_the_operator_may_not_read_is_named() -> None:
    rig = Rig()
    rig.status = 403
    found = await rig.find()
    assert isinstance(found, StoreView)
    assert found.reason == "SecretForbidden"
    assert f"may not read the Secret {NAME}: add it to secretNames" in found.error


def test_new_keys_differ_and_the_others_follow_from_the_operators() -> None:
    first, second = (new_signing_keys(OWNER, "three")["stringData"] for _ in range(2))
    assert first["trusted-record"] == "three"
    assert all(first[name.value] != second[name.value] for name in KeyName)
    operator = first[KeyName.OPERATOR.value].encode()
    assert {name: first[name.value].encode() for name in KeyName} == all_keys(operator)

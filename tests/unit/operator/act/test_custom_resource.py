"""Each write of the custom resource replaces only the version that was observed."""

from __future__ import annotations

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.act.custom_resource import claim, set_finalizer, write_status
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.errors import Conflict
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.stored_resource import owner_of, status_of
from tests.unit.operator.fake_api import FakeApi
from tests.unit.operator.worlds import CONFIG, MINIMAL, OWNER

THEIRS = "example.org/theirs"
KEY = ("AuroraSpeculator", OWNER.name)


def stored(api: FakeApi, *finalizers: str) -> Object:
    metadata = {"namespace": OWNER.namespace, "name": OWNER.name, "finalizers": [*finalizers]}
    return api.put({"kind": KEY[0], "metadata": metadata, "spec": MINIMAL, "status": {"updated": "2/2"}})


async def test_each_write_over_another_version_is_refused() -> None:
    api = FakeApi()
    before = stored(api, FINALIZER)
    now = api.put({**before, "metadata": {**before["metadata"], "labels": {"of": "a user"}}})
    for write in (
        write_status(api, owner_of(before), SpeculatorStatus()),
        claim(api, before, CONFIG.identity),
        set_finalizer(api, before, wanted=False),
    ):
        with pytest.raises(Conflict):
            await write
    assert api.objects[KEY] == now


async def test_a_claim_keeps_the_status_of_a_former_operator() -> None:
    claimed = await claim(api := FakeApi(), stored(api), CONFIG.identity)
    assert (status_of(claimed).operator, status_of(claimed).updated) == (CONFIG.identity, "2/2")


@pytest.mark.parametrize(("wanted", "expected"), [(True, [FINALIZER, THEIRS]), (False, [THEIRS])])
async def test_the_finalizers_of_others_stay(*, wanted: bool, expected: list[str]) -> None:
    api = FakeApi()
    await set_finalizer(api, stored(api, FINALIZER, THEIRS), wanted=wanted)
    assert api.objects[KEY]["metadata"]["finalizers"] == expected

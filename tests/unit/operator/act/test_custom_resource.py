"""Each write of the custom resource replaces only the version that was observed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.act.custom_resource import claim, set_finalizer, write_status
from aurora_operator.children.metadata import FINALIZER
from aurora_operator.errors import Conflict, KubernetesError
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
        set_finalizer(api, owner_of(before), wanted=False),
        set_finalizer(api, replace(owner_of(now), uid="another"), wanted=True),
    ):
        with pytest.raises(Conflict):
            await write
    assert api.objects[KEY] == now


async def test_a_claim_keeps_the_status_of_a_former_operator() -> None:
    claimed = await claim(api := FakeApi(), stored(api), CONFIG.identity)
    assert (status_of(claimed).operator, status_of(claimed).updated) == (CONFIG.identity, "2/2")


@pytest.mark.parametrize(("wanted", "expected"), [(True, [THEIRS, FINALIZER]), (False, [THEIRS])])
async def test_the_finalizers_of_others_stay(*, wanted: bool, expected: list[str]) -> None:
    api = FakeApi()
    owner = owner_of(stored(api, FINALIZER, THEIRS))
    await set_finalizer(api, owner, wanted=wanted)
    assert api.objects[KEY]["metadata"]["finalizers"] == expected


class ChangingWebhook(FakeApi):
    """An admission webhook sets the finalizers to its own taste."""

    async def patch(self, obj: Object, changes: Object, *, subresource: str = "") -> Object:
        answer = await super().patch(obj, changes, subresource=subresource)
        wrong = [] if FINALIZER in changes["metadata"]["finalizers"] else [FINALIZER]
        return self.put({**answer, "metadata": {**answer["metadata"], "finalizers": wrong}})


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_finalizer_that_a_webhook_drops_or_keeps_is_an_error(*, wanted: bool) -> None:
    """The API server answers 200, and data would stay behind, or the speculator for ever."""
    api = ChangingWebhook()
    with pytest.raises(KubernetesError, match="admission webhook") as raised:
        await set_finalizer(api, owner_of(stored(api)), wanted=wanted)
    assert raised.value.status == 422

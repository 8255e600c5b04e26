"""The apply that removes what a child no longer has comes after the adoption of its created fields, whatever fails."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest

from aurora_operator.act.child_apply import MAX_ATTEMPTS
from aurora_operator.act.child_writer import ChildWriter, WriteResult
from aurora_operator.errors import Conflict, KubernetesError
from aurora_operator.kubernetes_api import Object
from tests.unit.operator.act.test_child_writer import BUDGET, CHANGED_SERVICE, FakeApi, write
from tests.unit.operator.worlds import OWNER


@pytest.mark.parametrize("status_writes", range(MAX_ATTEMPTS + 1))
async def test_the_apply_after_the_adoption_is_never_left_out(status_writes: int) -> None:
    """Only that apply removes fields that the child does not have any more, and the digest says "written" before it."""
    api = FakeApi()
    await write(api)
    api.writes.clear()
    changed = {**BUDGET, "spec": {**BUDGET["spec"], "maxUnavailable": 2}}
    api.status_writes, writer = status_writes, ChildWriter(api)
    with suppress(Conflict):
        await writer.write(OWNER, (), (changed,), api.owned())
    api.status_writes = 0
    assert await writer.write(OWNER, (), (changed,), api.owned()) == WriteResult()
    adoption = api.writes.index("adopt fields PodDisruptionBudget chat")
    assert "apply PodDisruptionBudget chat" in api.writes[adoption:]


async def test_an_apply_that_fails_after_the_adoption_is_made_up_for() -> None:
    api = FakeApi()
    await write(api)
    writer, adopt = ChildWriter(api), api.set_managed_fields

    def adopt_and_lose_the_connection(obj: Object, managed_fields: Sequence[Object]) -> Object:
        api.unavailable = True
        return adopt(obj, managed_fields)

    api.set_managed_fields = adopt_and_lose_the_connection  # type: ignore[method-assign]
    with pytest.raises(KubernetesError):
        await writer.write(OWNER, (), (CHANGED_SERVICE,), api.owned())
    api.unavailable = False
    api.writes.clear()
    assert await writer.write(OWNER, (), (CHANGED_SERVICE,), api.owned()) == WriteResult()
    assert api.writes == ["apply Service chat"]


async def test_a_status_written_before_the_adoption_does_not_repeat_the_apply() -> None:
    """A controller answers most applies with a status at once."""

    class AnsweringApi(FakeApi):
        def apply(self, obj: Object, *, subresource: str = "") -> Object:
            applied = super().apply(obj, subresource=subresource)
            self.status_writes = int("adopt fields PodDisruptionBudget chat" not in self.writes)
            return applied

    api = AnsweringApi()
    await write(api)
    api.writes.clear()
    changed = {**BUDGET, "spec": {**BUDGET["spec"], "maxUnavailable": 2}}
    assert await ChildWriter(api).write(OWNER, (), (changed,), api.owned()) == WriteResult()
    assert api.writes == [
        "apply PodDisruptionBudget chat",
        "adopt fields PodDisruptionBudget chat",
        "apply PodDisruptionBudget chat",
    ]

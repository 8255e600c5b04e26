"""The StatefulSet of an earlier operator is deleted, once, and only if it is the speculator's."""

from __future__ import annotations

from typing import Any, cast

import pytest

from aurora_operator.act.former_trainer import delete_former_trainer
from aurora_operator.errors import Conflict, NotFound
from aurora_operator.kubernetes_api import Object, Resource
from tests.unit.operator.worlds import OWNER


class OneStatefulSet:
    """Fake API server with at most one StatefulSet. Fake, because the object is replaced between two calls."""

    def __init__(self, owner_uid: str | None, *, replaced: bool = False) -> None:
        self.owner_uid, self.replaced = owner_uid, replaced
        self.deleted: list[tuple[str, str]] = []

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        assert (resource.kind, name) == ("StatefulSet", "chat-trainer")
        if self.owner_uid is None:
            raise NotFound(name, 404)
        return {
            "metadata": {"name": name, "uid": "s1", "ownerReferences": [{"uid": self.owner_uid, "controller": True}]}
        }

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        if self.replaced:
            raise Conflict("the uid differs", 409)
        self.deleted.append((name, uid))


@pytest.mark.parametrize(
    ("api", "deleted"),
    [
        (OneStatefulSet(OWNER.uid), [("chat-trainer", "s1")]),
        (OneStatefulSet("another"), []),
        (OneStatefulSet(None), []),
    ],
)
async def test_only_our_own_statefulset_is_deleted(api: OneStatefulSet, deleted: list[tuple[str, str]]) -> None:
    await delete_former_trainer(cast(Any, api), OWNER)
    assert api.deleted == deleted


async def test_a_statefulset_that_was_replaced_meanwhile_is_looked_at_again() -> None:
    with pytest.raises(Conflict):
        await delete_former_trainer(cast(Any, OneStatefulSet(OWNER.uid, replaced=True)), OWNER)

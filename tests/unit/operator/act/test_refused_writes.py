"""A child that the API server refuses for days is tried ever more rarely, and at once after a change."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import pytest

from aurora_operator.act.refused_writes import (
    MAX_NAME_TAKEN_SECONDS,
    MAX_RETRY_SECONDS,
    NameTakenError,
    RefusedWrites,
)
from aurora_operator.errors import Conflict, KubernetesError

KEY = ("Service", "chat")
DENIED = KubernetesError("denied by a webhook", 422)


class Rig:
    """A child that is written every second, and a clock that a test moves."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.now = error, 1000.0
        self.tries: list[float] = []
        self.refused = RefusedWrites(lambda: self.now)

    async def _write(self) -> str:
        self.tries.append(self.now)
        if self.error is not None:
            raise self.error
        return "written"

    async def write(self, identity: object = 1) -> str:
        try:
            return await self.refused.attempt(KEY, identity, self._write)
        except (NameTakenError, KubernetesError) as error:
            return type(error).__name__

    async def write_for(self, seconds: int) -> None:
        for _ in range(seconds):
            await self.write()
            self.now += 1


@pytest.mark.parametrize(
    ("error", "longest"), [(DENIED, MAX_RETRY_SECONDS), (NameTakenError(), MAX_NAME_TAKEN_SECONDS)]
)
async def test_a_refusal_is_repeated_without_a_call_and_tried_after_growing_delays(
    error: Exception, longest: float
) -> None:
    rig = Rig(error)
    await rig.write_for(7200)
    gaps = [later - earlier for earlier, later in pairwise(rig.tries)]
    assert gaps[:5] == [2, 4, 8, 16, 32]
    assert set(gaps[-3:]) == {longest}
    assert await rig.write() == type(error).__name__, "the status goes on telling it"
    assert 0 < rig.refused.seconds_until_retry() <= longest


async def test_another_child_another_object_and_a_change_in_the_cluster_are_tried_at_once() -> None:
    rig = Rig(DENIED)
    await rig.write_for(3600)
    rig.tries.clear()
    assert await rig.write() == "KubernetesError"
    assert rig.tries == []
    await rig.write(identity=2)
    assert len(rig.tries) == 1
    rig.now += 1
    rig.refused.try_now()
    rig.error = None
    assert await rig.write(identity=2) == "written"
    assert rig.refused.seconds_until_retry() == float("inf")


async def test_changes_in_the_cluster_do_not_end_the_growth_of_the_delays() -> None:
    rig = Rig(DENIED)
    for _ in range(8):
        await rig.write()
        rig.refused.try_now()
    await rig.write()
    assert rig.refused.seconds_until_retry() == 512


@pytest.mark.parametrize(
    "error", [Conflict("moved on", 409), KubernetesError("no connection"), KubernetesError("", 503)]
)
async def test_another_writer_and_an_api_server_that_is_away_delay_nothing(error: KubernetesError) -> None:
    rig = Rig(error)
    await rig.write_for(5)
    assert len(rig.tries) == 5


async def test_a_child_that_is_no_longer_wanted_is_forgotten() -> None:
    rig = Rig(DENIED)
    await rig.write()
    rig.refused.keep_only(set())
    assert rig.refused.seconds_until_retry() == float("inf")


async def test_a_refusal_keeps_nothing_of_what_was_written() -> None:
    """A traceback would keep the frames of the write, and so the generated keys, for as long as the refusal lasts."""

    class Keys:
        """Stands for the body of a Secret."""

    written = list[weakref.ref[Keys]]()
    refused = RefusedWrites(lambda: 1000.0)

    async def deny() -> None:
        raise KubernetesError("denied by a webhook", 422)

    async def write() -> None:
        keys = Keys()
        written.append(weakref.ref(keys))
        await refused.attempt(KEY, 1, deny)

    for _ in range(2):
        with pytest.raises(KubernetesError, match="denied by a webhook") as caught:
            await write()
        assert caught.value.status == 422
        del caught
        gc.collect()
        assert written.pop()() is None

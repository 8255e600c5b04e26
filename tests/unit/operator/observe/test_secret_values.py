"""A Secret is kept for a while. One that is missing is looked for each time."""

from __future__ import annotations

import pytest

from aurora_operator.errors import KubernetesError
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.secret_values import KEPT_SECONDS, SecretReader, secret_value
from tests.unit.operator.fake_api import UNAVAILABLE, FakeApi


class Rig:
    """A fake API server, and a clock that a test moves."""

    def __init__(self) -> None:
        self.api, self.now = FakeApi(), 1000.0
        self.reader = SecretReader(self.api, "team", lambda: self.now)
        self.api.put({"kind": "Secret", "metadata": {"name": "s3", "namespace": "team"}})

    async def reads(self, seconds: float, step: float = 1.0) -> int:
        """The calls while the Secret is looked up every ``step`` seconds."""
        self.api.calls.clear()
        for _ in range(round(seconds / step)):
            await self.reader.find("s3")
            self.now += step
        return len(self.api.calls)


async def test_a_secret_is_read_again_after_its_time() -> None:
    rig = Rig()
    assert await rig.reads(KEPT_SECONDS) == 1
    assert await rig.reads(2 * KEPT_SECONDS) == 2


async def test_a_missing_secret_is_looked_for_each_time_and_used_at_once() -> None:
    rig = Rig()
    rig.api.remove("Secret", "s3")
    assert await rig.reads(3) == 3
    made: Object = rig.api.put({"kind": "Secret", "metadata": {"name": "s3", "namespace": "team"}})
    assert await rig.reader.find("s3") == made


@pytest.mark.parametrize("error", [KubernetesError("forbidden", 403), UNAVAILABLE])
async def test_an_error_is_raised_and_the_next_use_reads_again(error: KubernetesError) -> None:
    rig = Rig()
    rig.api.faults["get Secret"] = error
    with pytest.raises(KubernetesError):
        await rig.reader.find("s3")
    rig.api.faults.clear()
    assert await rig.reader.find("s3") is not None


def test_a_value_that_is_no_text_counts_as_missing() -> None:
    assert secret_value({"data": {"key": "/w=="}}, "key") == ""
    assert secret_value({"data": {"key": "c2VjcmV0"}}, "key") == "secret"
    assert secret_value({"data": None}, "key") == ""

"""SGLang's own allocator and prefix cache, with and without the change, over 800 requests that decode together."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    command = [sys.executable, "-m", "tests.unit.cpu.slots_after_requests"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    result: dict[str, object] = json.loads(output.splitlines()[-1])
    return result


def test_most_slots_of_a_request_are_beside_each_other_after_800_requests(found: dict[str, float]) -> None:
    assert found["stock"] < 0.3, "without the change they are scattered"
    assert found["ordered"] > 0.7


def test_no_slot_is_lost_or_handed_out_twice(found: dict[str, object]) -> None:
    assert found["all known"]


def test_nothing_is_evicted_while_enough_slots_are_free(found: dict[str, object]) -> None:
    assert found["evictable"] == [1000, 0]

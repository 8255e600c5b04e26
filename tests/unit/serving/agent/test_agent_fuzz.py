"""Mutated requests to an agent: no handler fails, nothing hangs, and no order without the token is obeyed.

``python -m tests.fuzz`` runs the same attack with thousands of mutations.
"""

from __future__ import annotations

from tests.example_count import example_count
from tests.fuzz.fuzzed_agent import attack_agents


async def test_no_mutated_request_is_obeyed_or_ends_an_agent() -> None:
    failures = list[str]()
    await attack_agents(range(example_count(150)), failures.append)
    assert failures == []

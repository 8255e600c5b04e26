"""Mutated records, manifests and shards end in the project's own errors, and no file leaves its folder.

``python -m tests.fuzz`` runs the same attack with 10,000 mutations.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aurora_store import Keys
from tests.example_count import example_count
from tests.fuzz.fuzzed_operator import FuzzedOperator
from tests.fuzz.fuzzed_store import FuzzedStore

MUTATIONS = settings(
    max_examples=example_count(150), derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FuzzedStore:
    return FuzzedStore(tmp_path_factory.mktemp("fuzz"))


@MUTATIONS
@given(seed=st.integers(0, 1 << 32))
def test_no_mutation_of_the_store_ends_a_reader(store: FuzzedStore, seed: int) -> None:
    store.attack(random.Random(seed))  # noqa: S311 - mutations, no secrets


def test_the_store_is_readable_before_the_mutation(store: FuzzedStore, tmp_path: Path) -> None:
    """Else the attack would test nothing."""
    store.objects.data = dict(store.good)
    for read in store._readers().values():
        read()


@pytest.fixture(scope="module")
def operator(store: FuzzedStore) -> FuzzedOperator:
    return FuzzedOperator(store)


@MUTATIONS
@given(seed=st.integers(0, 1 << 32))
def test_no_mutation_of_the_store_ends_the_operators_reader(operator: FuzzedOperator, seed: int) -> None:
    operator.attack(random.Random(seed))  # noqa: S311 - mutations, no secrets


def test_the_operator_reads_on_once_a_damaged_record_of_evidence_is_removed(
    operator: FuzzedOperator, store: FuzzedStore
) -> None:
    reader = operator.reader()
    assert operator.view(reader, dict(store.good)).ok
    for read in (reader, operator.reader()):
        damaged = operator.view(read, {**store.good, Keys.evidence(1, 2): b"{}"})
        assert damaged.reason == "InvalidRecord"
        assert operator.view(read, dict(store.good)).ok

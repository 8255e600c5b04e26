from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.serving.speculation.lookup_index import LookupIndex, Proposal
from aurora_runtime.serving.speculation.lookup_seed import (
    MAX_SEED_BYTES,
    MAX_SEED_TOKENS,
    decode_seed,
    encode_seed,
    read_seed,
    seed_index,
)

VOCABULARY = 50


@given(st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20), max_size=10))
def test_a_seed_is_read_as_it_was_written(texts: list[list[int]]) -> None:
    assert [list(text) for text in decode_seed(encode_seed(texts), VOCABULARY)] == texts


@given(st.data())
def test_a_damaged_seed_is_refused_or_has_tokens_of_the_vocabulary(data: st.DataObject) -> None:
    damaged = bytearray(encode_seed([[1, 2, 3], [4, 5]]))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        texts = decode_seed(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), VOCABULARY)
    except ValueError:
        return
    assert all(0 <= token < VOCABULARY for text in texts for token in text)


def int32(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(numbers, dtype=np.int32)


@pytest.mark.parametrize(
    "tensors",
    [
        {"lengths": int32(2)},
        {"lengths": int32(2), "tokens": int32(1)},
        {"lengths": int32(0, 1), "tokens": int32(1)},
        {"lengths": int32(1), "tokens": int32(VOCABULARY)},
        {"lengths": int32(1), "tokens": int32(-1)},
        {"lengths": int32(1), "tokens": np.array([1], dtype=np.int64)},
        {"lengths": int32(1), "tokens": np.array([[1]], dtype=np.int32)},
        {"lengths": int32(MAX_SEED_TOKENS + 1), "tokens": np.ones(MAX_SEED_TOKENS + 1, dtype=np.int32)},
    ],
)
def test_a_wrong_seed_is_refused(tensors: dict[str, np.ndarray[tuple[int], np.dtype[np.int32]]]) -> None:
    with pytest.raises(ValueError, match="the seed"):
        decode_seed(save(tensors), VOCABULARY)


def test_the_largest_seed_fits_its_file() -> None:
    assert len(encode_seed([[1]] * MAX_SEED_TOKENS)) <= MAX_SEED_BYTES


def test_an_index_is_seeded_with_the_texts_of_the_file(tmp_path: Path) -> None:
    index = LookupIndex(LookupScope.SPECULATOR, 100)
    seed_index(index, read_seed(tmp_path / "seed"), VOCABULARY)
    assert index.tokens == 0
    (tmp_path / "seed").write_bytes(encode_seed([[1, 2, 3], [4, 5, 6]]))
    seed_index(index, read_seed(tmp_path / "seed"), VOCABULARY)
    index.begin("a", [4, 5])
    assert index.propose("a", 1) == Proposal((6,), 2)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"nonsense"),
        lambda path: path.write_bytes(bytes(MAX_SEED_BYTES + 1)),
        lambda path: path.write_bytes(encode_seed([[VOCABULARY]])),
        lambda path: path.mkdir(),
    ],
    ids=["no seed", "too large", "other vocabulary", "no file"],
)
def test_a_bad_file_seeds_nothing(tmp_path: Path, write: Callable[[Path], object]) -> None:
    path, index = tmp_path / "seed", LookupIndex(LookupScope.SPECULATOR, 100)
    write(path)
    seed_index(index, read_seed(path), VOCABULARY)
    assert index.tokens == 0

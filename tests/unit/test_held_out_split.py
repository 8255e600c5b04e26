from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.held_out_split import prompt_hash


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_a_prompts_hash_is_that_of_its_tokens_as_little_endian_numbers(tokens: list[int]) -> None:
    data = b"".join(token.to_bytes(4, "little") for token in tokens)
    assert prompt_hash(tokens) == int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1

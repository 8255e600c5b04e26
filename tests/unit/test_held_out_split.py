"""Which prompts are held out, and that no client can choose."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.held_out_split import PROMPTS_PER_HELD_OUT, is_held_out, prompt_hash, traffic_key


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_a_prompts_hash_is_that_of_its_tokens_as_little_endian_numbers(tokens: list[int]) -> None:
    data = b"".join(token.to_bytes(4, "little") for token in tokens)
    assert prompt_hash(tokens) == int.from_bytes(hashlib.sha256(data).digest()[:8], "big") >> 1


def test_prompts_chosen_to_be_held_out_are_held_out_no_more_often_than_others() -> None:
    """A client computes the hash, which is public, and sends only prompts that fall on one side."""
    chosen = [prompt for first in range(40_000) if is_held_out(prompt_hash(prompt := [first, 7]))]
    held_out = [is_held_out(prompt_hash(prompt, traffic_key("secret", 1))) for prompt in chosen]
    assert 0.9 < PROMPTS_PER_HELD_OUT * sum(held_out) / len(chosen) < 1.1


def test_all_pods_of_a_lineage_agree_and_other_secrets_and_lineages_decide_anew() -> None:
    prompts = [[first, 7] for first in range(2000)]

    def split(secret: str, lineage: int) -> list[bool]:
        return [is_held_out(prompt_hash(prompt, traffic_key(secret, lineage))) for prompt in prompts]

    assert split("secret", 1) == split("secret", 1)
    assert len({tuple(split(secret, lineage)) for secret in ("secret", "other") for lineage in (1, 2)}) == 4

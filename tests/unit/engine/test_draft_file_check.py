"""Only a file that the running engine can load passes; every other file is refused with a reason."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from aurora_runtime.engine.draft_file_check import check_draft_file, read_header
from aurora_runtime.errors import DraftRefused
from tests.example_count import example_count
from tests.unit.fakes import draft_tensors, lineage, safetensors


def refuses(tmp_path: Path, data: bytes, why: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(DraftRefused, match=why):
        check_draft_file(file, lineage())


def test_a_file_written_by_safetensors_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.ones(4)}, file, metadata={"format": "pt"})
    with file.open("rb") as source:
        entries, offset = read_header(source, file.stat().st_size)
    assert {name: (entry.spec.dtype, entry.spec.shape) for name, entry in entries.items()} == {
        "a": ("BF16", (2, 3)),
        "b": ("F32", (4,)),
    }
    assert offset + max(entry.end for entry in entries.values()) == file.stat().st_size


@pytest.mark.parametrize("cut", [0, 4, 8, 40, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    refuses(tmp_path, safetensors(draft_tensors())[:cut], "not a safetensors|truncated")


def test_a_file_with_surplus_bytes_is_refused(tmp_path: Path) -> None:
    refuses(tmp_path, safetensors(draft_tensors()) + b"x", "longer than its header")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fc.weight", struct.pack("<f", float("nan"))[2:]),
        ("fc.weight", struct.pack("<f", float("-inf"))[2:]),
        ("norm.weight", struct.pack("<f", float("nan"))),
        ("half.weight", struct.pack("<e", float("inf"))),
    ],
)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: bytes) -> None:
    tensors = draft_tensors()
    dtype, shape, data = tensors[name]
    tensors[name] = dtype, shape, data[: -len(value)] + value
    refuses(tmp_path, safetensors(tensors), f"{name} holds values that are not finite")


def mapped(ids: list[int], reachable: list[int] | None = None) -> bytes:
    """A draft whose ``d2t`` names the target's ``ids``; its ``t2d`` may differ."""
    offsets = struct.pack("<4q", *(id_ - i for i, id_ in enumerate(ids)))
    held = bytes(i in (ids if reachable is None else reachable) for i in range(8))
    return safetensors(draft_tensors() | {"d2t": ("I64", [4], offsets), "t2d": ("BOOL", [8], held)})


@settings(max_examples=example_count(40), deadline=None)
@given(ids=st.sets(st.integers(0, 7), min_size=4, max_size=4).map(sorted))
def test_every_map_that_names_target_tokens_in_order_passes(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int]
) -> None:
    file = tmp_path_factory.mktemp("mapped") / "model.safetensors"
    file.write_bytes(mapped(ids))
    check_draft_file(file, lineage())


@pytest.mark.parametrize("ids", [[0, 1, 2, 8], [-1, 1, 2, 3], [0, 2, 2, 3], [0, 2, 1, 3], [0, 1, 2, 1 << 62]])
def test_a_map_without_tokens_or_out_of_order_is_refused(tmp_path: Path, ids: list[int]) -> None:
    refuses(tmp_path, mapped(ids), "d2t does not name target tokens below 8")


def test_maps_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    refuses(tmp_path, mapped([0, 1, 2, 3], [0, 1, 2, 4]), "t2d and d2t name different")
    refuses(tmp_path, mapped([0, 1, 2, 3], [0, 1, 2, 3, 4]), "t2d and d2t name different")


def test_another_shape_dtype_or_set_of_tensors_is_refused(tmp_path: Path) -> None:
    tensors = draft_tensors()
    refuses(tmp_path, safetensors(tensors | {"fc.weight": ("BF16", [3, 2], tensors["fc.weight"][2])}), r"BF16 \[3, 2\]")
    refuses(tmp_path, safetensors(tensors | {"fc.weight": ("F16", [2, 3], tensors["fc.weight"][2])}), r"F16 \[2, 3\]")
    refuses(tmp_path, safetensors(tensors | {"embed_tokens.weight": ("F32", [1], b"\0" * 4)}), "unknown to the lineage")
    del tensors["t2d"]
    refuses(tmp_path, safetensors(tensors), "missing: t2d")


def test_overlapping_or_wrong_offsets_are_refused(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    }
    text = json.dumps(header).encode()
    refuses(tmp_path, struct.pack("<Q", len(text)) + text + b"\0" * 8, "not where the header says")


random_bytes = st.binary(max_size=200)
random_headers = st.tuples(st.binary(max_size=80), st.binary(max_size=20)).map(
    lambda parts: struct.pack("<Q", len(parts[0])) + parts[0] + parts[1]
)


@settings(max_examples=example_count(80), deadline=None)
@given(data=random_bytes | random_headers)
def test_random_bytes_and_headers_raise_no_other_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    refuses(tmp_path_factory.mktemp("random"), data, "not a safetensors|header|bytes|missing")

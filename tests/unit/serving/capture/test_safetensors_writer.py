"""safetensors reads back what was written, for all shapes and dtypes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, load_file

from aurora_runtime.serving.capture import shard_writer
from aurora_store.objects import sha256_file

shapes = st.lists(st.integers(0, 5), min_size=1, max_size=3)
entries = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.tuples(st.sampled_from(list(shard_writer.DTYPES)), shapes),
    min_size=1,
    max_size=6,
)


@given(spec=entries, seed=st.integers(0, 1000))
def test_safetensors_reads_back_every_written_file(
    tmp_path_factory: pytest.TempPathFactory, spec: dict[str, tuple[torch.dtype, list[int]]], seed: int
) -> None:
    path = tmp_path_factory.mktemp("stream") / "file.safetensors"
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randint(0, 2, shape, generator=generator).to(dtype)
        for name, (dtype, shape) in spec.items()
        if name != "__metadata__"
    }
    sha256, size = shard_writer.write_safetensors(path, tensors)
    assert (sha256, size) == (sha256_file(path), path.stat().st_size)
    for loaded in (load_file(path), load(path.read_bytes())):
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor)


def test_a_tensor_larger_than_a_chunk_is_written_completely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "WRITE_CHUNK_BYTES", 7)
    tensor = torch.arange(1000).to(torch.int16)
    sha256, _ = shard_writer.write_safetensors(tmp_path / "file", {"a": tensor})
    assert torch.equal(load_file(tmp_path / "file")["a"], tensor)
    assert sha256 == sha256_file(tmp_path / "file")

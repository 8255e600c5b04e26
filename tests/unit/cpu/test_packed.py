"""Packed linears and the lean layers against plain torch, and that changed weights are never missed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from aurora_runtime.cpu import llama, packed

DTYPES = [torch.bfloat16, torch.float32]


class Linear(torch.nn.Module):
    """As SGLang's layers are: a parameter that loaders write through `.data`."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(rows, columns).to(dtype), requires_grad=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 4, 33, 300])
def test_packed_linears_equal_plain_ones(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(rows)
    layer, x, addend = Linear(96, 64, dtype), torch.randn(rows, 64).to(dtype), torch.randn(rows, 96).to(dtype)
    exact = x.double() @ layer.weight.double().T
    relative = 1e-2 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(packed.module_linear(layer, x).double(), exact, rtol=relative, atol=10 * relative)
    added = packed.linear_add(x, packed.packed_weight(layer), addend)
    torch.testing.assert_close(added.double(), exact + addend.double(), rtol=relative, atol=10 * relative)


@pytest.fixture(params=["as this machine multiplies", "without bfloat16"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without bfloat16":
        monkeypatch.setattr(packed, "product_dtype", lambda _: torch.float32)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_bf16_is_rounded_once(rows: int) -> None:
    """Whatever the machine multiplies in: half a unit in the last place, and what summing in float32 adds to it."""
    torch.manual_seed(rows)
    layer, x, addend = Linear(96, 576, torch.bfloat16), torch.randn(rows, 576), torch.randn(rows, 96)
    x, addend = x.bfloat16(), addend.bfloat16()
    exact = x.double() @ layer.weight.double().T
    for found, wanted in (
        (packed.module_linear(layer, x), exact),
        (packed.linear_add(x, packed.packed_weight(layer), addend), exact + addend.double()),
    ):
        assert found.dtype is torch.bfloat16
        torch.testing.assert_close(found.double(), wanted, rtol=2**-8 * 1.01, atol=1e-3)


@pytest.mark.usefixtures("machine")
def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    torch.manual_seed(0)
    weight = packed.pack(torch.randn(576, 1536).bfloat16())
    x = torch.randn(256, 1536).bfloat16()
    alone = torch.cat([packed.linear(row[None], weight) for row in x])
    for rows in (2, 4, 6, 16):
        assert torch.equal(torch.cat([packed.linear(part, weight) for part in torch.split(x, rows)]), alone)


def test_new_weights_are_used_after_forget_or_replacement() -> None:
    layer, x = Linear(8, 8, torch.float32), torch.randn(2, 8)
    model = torch.nn.ModuleDict({"layer": layer})
    old = packed.module_linear(layer, x)
    layer.weight.data.copy_(torch.eye(8))
    llama.forget(model)
    assert torch.equal(packed.module_linear(layer, x), x)
    assert not torch.equal(old, x)
    layer.weight = torch.nn.Parameter(2 * torch.eye(8), requires_grad=False)
    assert torch.equal(packed.module_linear(layer, x), 2 * x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_what_onednn_does_not_take_is_not_packed(dtype: torch.dtype) -> None:
    assert not packed.supported(torch.zeros(4, 4, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_is_the_rms_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 64).to(dtype), torch.randn(64).to(dtype)
    norm = llama.Norm(weight.float(), torch.tensor(1e-5))
    exact = F.rms_norm(x.double(), (64,), weight.double(), 1e-5)
    relative = 8e-3 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(norm(x).double(), exact, rtol=relative, atol=relative)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_turns_each_half_pair_by_its_position(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    width, positions = 8, torch.tensor([0, 3, 11])
    angle = torch.arange(16)[:, None] * 0.5 ** torch.arange(width // 2)
    cache = torch.cat((angle.cos(), angle.sin()), -1)
    x = torch.randn(3, 2 * width).to(dtype)
    turned = llama.Rotation.at(cache, positions, dtype)(x, width)
    relative = 2e-2 if dtype is torch.bfloat16 else 1e-5
    for row, position in enumerate(positions.tolist()):
        for head in range(2):
            first = x[row, head * width : head * width + width // 2].double()
            second = x[row, head * width + width // 2 : (head + 1) * width].double()
            expected = (first + 1j * second) * torch.polar(torch.ones(width // 2), angle[position].float()).to(
                torch.complex128
            )
            actual = turned[row, head].double()
            torch.testing.assert_close(actual[: width // 2], expected.real, rtol=relative, atol=relative)
            torch.testing.assert_close(actual[width // 2 :], expected.imag, rtol=relative, atol=relative)

"""Compares packed linears and lean layers with plain torch, and checks that changed weights take effect."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from aurora_runtime.cpu import lean_llama, packed_weights

DTYPES = [torch.bfloat16, torch.float32]


class Linear(torch.nn.Module):
    """Like SGLang's layers: loaders write the parameter through `.data`."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(rows, columns).to(dtype), requires_grad=False)


@pytest.fixture(params=["product dtype of this machine", "no bfloat16 products"])
def product_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no bfloat16 products":
        monkeypatch.setattr(packed_weights, "product_dtype", lambda _: torch.float32)


@pytest.mark.usefixtures("product_dtype")
@pytest.mark.parametrize(("dtype", "relative"), [(torch.bfloat16, 2**-8 * 1.01), (torch.float32, 1e-5)])
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_packed_linears_equal_plain_ones_and_are_rounded_once(rows: int, dtype: torch.dtype, relative: float) -> None:
    """In bf16 the error is half a unit in the last place plus the error of summing in float32, on every machine."""
    torch.manual_seed(rows)
    layer, x, addend = Linear(96, 576, dtype), torch.randn(rows, 576).to(dtype), torch.randn(rows, 96).to(dtype)
    exact = x.double() @ layer.weight.double().T
    for actual, expected in (
        (packed_weights.module_linear(layer, x), exact),
        (packed_weights.linear_add(x, packed_weights.packed_weight(layer), addend), exact + addend.double()),
    ):
        assert actual.dtype is dtype
        torch.testing.assert_close(actual.double(), expected, rtol=relative, atol=1e-3)


@pytest.mark.usefixtures("product_dtype")
def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    torch.manual_seed(0)
    weight = packed_weights.pack(torch.randn(576, 1536).bfloat16())
    x = torch.randn(256, 1536).bfloat16()
    alone = torch.cat([packed_weights.linear(row[None], weight) for row in x])
    for rows in (2, 4, 6, 16):
        assert torch.equal(torch.cat([packed_weights.linear(part, weight) for part in torch.split(x, rows)]), alone)


def test_new_weights_take_effect_after_forget_or_replacement() -> None:
    layer, x = Linear(8, 8, torch.float32), torch.randn(2, 8)
    model = torch.nn.ModuleDict({"layer": layer})
    old = packed_weights.module_linear(layer, x)
    layer.weight.data.copy_(torch.eye(8))
    lean_llama.forget(model)
    assert torch.equal(packed_weights.module_linear(layer, x), x)
    assert not torch.equal(old, x)
    layer.weight = torch.nn.Parameter(2 * torch.eye(8), requires_grad=False)
    assert torch.equal(packed_weights.module_linear(layer, x), 2 * x)


@pytest.mark.usefixtures("product_dtype")
@pytest.mark.parametrize("dtype", DTYPES)
def test_added_rows_change_no_result(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = packed_weights.pack(torch.randn(96, 576).to(dtype))
    x, addend = torch.randn(3, 576).to(dtype), torch.randn(3, 96).to(dtype)
    found = []
    for counts in ((2, 2, 2, 3, 4), (4, 4, 4, 4, 4)):
        monkeypatch.setattr(packed_weights, "row_counts", lambda rows, counts=counts: counts[rows])
        parts = [x[:rows] for rows in (1, 2, 3)]
        found.append(
            torch.cat(
                [packed_weights.linear(part, weight) for part in parts]
                + [packed_weights.linear_add(part, weight, addend[: part.shape[0]]) for part in parts]
            )
        )
    assert torch.equal(*found)


def computed_rows(seconds: dict[int, float]) -> list[int]:
    """The rows that are computed for one to six rows, where a product with ``rows`` rows takes ``seconds[rows]``."""
    now = [0.0]

    def compute(rows: int) -> None:
        now[0] += seconds[rows]

    chosen = packed_weights.RowCounts()
    chosen.measure(compute, lambda: now[0])
    return [chosen(rows) for rows in range(1, 7)]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param({2: 20.0, 3: 21.0, 4: 22.0}, [2, 2, 3, 4, 5, 6], id="few rows are fast"),
        pytest.param({2: 28.0, 3: 24.0, 4: 22.0}, [4, 4, 4, 4, 5, 6], id="few rows are slow"),
        pytest.param({2: 28.0, 3: 22.0, 4: 22.5}, [3, 3, 3, 4, 5, 6], id="three rows are the fastest"),
        pytest.param({2: 20.0, 3: 20.0, 4: 19.5}, [2, 2, 3, 4, 5, 6], id="within the noise"),
    ],
)
def test_rows_are_added_where_that_is_faster(seconds: dict[int, float], expected: list[int]) -> None:
    assert computed_rows(seconds) == expected


@pytest.mark.parametrize("seconds", list(itertools.product((1.0, 0.97, 0.9), repeat=3)))
def test_the_number_of_rows_that_is_computed_needs_no_further_rows(seconds: tuple[float, float, float]) -> None:
    chosen = computed_rows(dict(zip((2, 3, 4), seconds, strict=True)))
    assert all(chosen[rows - 1] == rows for rows in chosen)


def test_before_the_measurement_only_a_single_row_is_not_alone() -> None:
    assert [packed_weights.RowCounts()(rows) for rows in range(1, 6)] == [2, 2, 3, 4, 5]


def test_it_is_measured_once() -> None:
    asked = list[int]()
    chosen = packed_weights.RowCounts()
    for _ in range(2):
        chosen.measure(asked.append)
    assert len(asked) == 3 * (packed_weights.REPETITIONS + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_a_dtype_that_onednn_does_not_support_is_not_packed(dtype: torch.dtype) -> None:
    assert not packed_weights.is_supported(torch.zeros(4, 4, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_lean_norm_equals_the_rms_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(5, 64).to(dtype), torch.randn(64).to(dtype)
    norm = lean_llama.Norm(weight.float(), torch.tensor(1e-5))
    exact = F.rms_norm(x.double(), (64,), weight.double(), 1e-5)
    relative = 8e-3 if dtype is torch.bfloat16 else 1e-5
    torch.testing.assert_close(norm(x).double(), exact, rtol=relative, atol=relative)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_turns_each_pair_of_halves_by_its_position(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    width, positions = 8, torch.tensor([0, 3, 11])
    angle = torch.arange(16)[:, None] * 0.5 ** torch.arange(width // 2)
    cache = torch.cat((angle.cos(), angle.sin()), -1)
    x = torch.randn(3, 2 * width).to(dtype)
    turned = lean_llama.Rotation.at(cache, positions, dtype)(x, width)
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

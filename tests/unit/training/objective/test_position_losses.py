"""Losses against plain formulas, as properties; and the fused head against plain autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aurora_runtime.training.objective.head_loss import head_loss
from aurora_runtime.training.objective.position_losses import LOSSES
from aurora_runtime.training.objective.target_distribution import TargetDistribution
from tests.example_count import example_count

N, V, K = 5, 40, 6
seeds = st.integers(0, 10_000)
sharpness = st.floats(0.1, 2.5)
"""Factors of the logits. With larger ones probabilities fall below TINY, where a loss takes TINY instead."""
outsides = st.sampled_from([0.0, 0.3, 1.0])
every_loss = pytest.mark.parametrize("name", sorted(LOSSES))


def case(seed: int, outside: float, sharp: float) -> tuple[Tensor, TargetDistribution]:
    """Random logits and a target with a share of tokens outside the draft vocabulary."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, V, generator=g, dtype=torch.float32) * sharp
    ids = torch.stack([torch.randperm(V, generator=g)[:K] for _ in range(N)])
    probs = torch.rand(N, K + 1, generator=g).softmax(-1)
    dropped = torch.rand(N, K, generator=g) < outside
    return logits, TargetDistribution(ids.masked_fill(dropped, -1), probs[:, :K] * ~dropped, probs[:, K])


def top(probs: Tensor, k: int) -> TargetDistribution:
    """The distributions that capture of the ``k`` most likely tokens keeps of ``probs`` ``[N, V]``."""
    kept = probs.topk(k)
    uncaptured_mass = (1 - kept.values.sum(-1)).clamp(min=0) if k < probs.shape[-1] else torch.zeros(len(probs))
    return TargetDistribution(kept.indices, kept.values, uncaptured_mass)


def formula(name: str, p: Tensor, q: Tensor) -> Tensor:
    """The textbook formula of the loss for two distributions ``[C]`` over the same outcomes."""
    formulas = {
        "forward_kl": lambda: torch.where(p > 0, p * (p / q).log(), 0.0).sum(),
        "reverse_kl": lambda: torch.where(q > 0, q * (q / p.clamp(min=1e-30)).log(), 0.0).sum(),
        "cross_entropy": lambda: -q[p.argmax()].log(),
        "total_variation": lambda: (p - q).abs().sum() / 2,
        "log_acceptance": lambda: -torch.minimum(p, q).sum().log(),
    }
    assert name in formulas, f"the new loss {name} lacks its textbook formula here"
    return formulas[name]()


def bucketed(name: str, logits: Tensor, target: TargetDistribution, n: int) -> Tensor:
    """The loss of row ``n`` by the formula over captured tokens and one bucket; in double, differentiable."""
    q = logits[n].softmax(-1)
    inside = target.ids[n] >= 0
    ids = target.ids[n][inside]
    if name == "cross_entropy":
        return -q[target.ids[n, 0]].log() if inside[0] else q.sum() * 0
    if not ids.numel():
        return q.sum() * (target.uncaptured_mass[n] * 0)
    p = torch.cat([target.probs[n][inside], target.uncaptured_mass[n : n + 1]]).double()
    if name == "total_variation":
        draft = torch.cat([q[ids], (1 - q[ids].sum())[None]])
        return (p - draft).clamp(min=0).sum()
    conditioned = p / p.sum()
    return p.sum() * formula(name, conditioned, torch.cat([q[ids], (1 - q[ids].sum())[None]]))


@every_loss
@given(seed=seeds, outside=outsides, sharp=sharpness)
@settings(max_examples=example_count(25), deadline=None)
def test_a_loss_and_its_gradient_are_those_of_the_formula(name: str, seed: int, outside: float, sharp: float) -> None:
    logits, target = case(seed, outside, sharp)
    if name == "total_variation":
        logits = logits + 1e-4 * torch.arange(V)  # off the kinks, where gradients may differ
    weight = torch.rand(N, generator=torch.Generator().manual_seed(seed))
    leaf, plain = logits.clone().requires_grad_(), logits.double().requires_grad_()
    got = LOSSES[name](leaf, target)
    want = torch.stack([bucketed(name, plain, target, n) for n in range(N)])
    torch.testing.assert_close(got, want.float(), atol=3e-5, rtol=1e-4)
    (got_grad,) = torch.autograd.grad((got * weight).sum(), leaf)
    (want_grad,) = torch.autograd.grad((want * weight).sum(), plain)
    torch.testing.assert_close(got_grad, want_grad.float(), atol=3e-5, rtol=1e-3)


@every_loss
@given(seed=seeds, sharp=sharpness)
@settings(max_examples=example_count(20), deadline=None)
def test_with_all_tokens_captured_a_loss_is_the_full_one(name: str, seed: int, sharp: float) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, probs = torch.randn(N, V, generator=g) * sharp, torch.randn(N, V, generator=g).softmax(-1)
    full = LOSSES[name](logits, top(probs, V))
    for n in range(N):
        want = formula(name, probs[n].double(), logits[n].double().softmax(-1))
        assert float(full[n]) == pytest.approx(float(want), abs=1e-4, rel=1e-3)


@every_loss
@pytest.mark.parametrize("uncaptured_mass", [0.0, 0.1])
@pytest.mark.parametrize("size", [60.0, -60.0])
def test_gradients_are_finite_with_extreme_logits(name: str, uncaptured_mass: float, size: float) -> None:
    logits = torch.full((1, V), -size)
    logits[0, 3] = size
    logits.requires_grad_()
    target = TargetDistribution(
        torch.tensor([[3, 4, -1]]), torch.tensor([[0.5, 0.2, 0.0]]), torch.tensor([uncaptured_mass])
    )
    value = LOSSES[name](logits, target)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert bool(value.isfinite().all())
    assert bool(grad.isfinite().all())
    assert float(grad.abs().max()) < 100


@every_loss
def test_head_loss_has_autograds_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurora_runtime.training.objective.head_loss.ROWS_PER_CHUNK", 2)  # several chunks
    _, target = case(7, 0.3, 1.0)
    hidden = torch.randn(N, 16, requires_grad=True)
    head = torch.randn(V, 16, requires_grad=True)
    weight = torch.rand(N)
    fused = head_loss(hidden, head, head.detach(), LOSSES[name], target, weight)
    plain = (LOSSES[name](hidden @ head.T, target) * weight).sum()
    assert float(fused.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    for got, want in zip(
        torch.autograd.grad(fused, (hidden, head)), torch.autograd.grad(plain, (hidden, head)), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)

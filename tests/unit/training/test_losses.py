"""Losses against dense references, and the fused head against plain autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aurora_runtime.training.head import head_loss
from aurora_runtime.training.losses import LOSSES, Teacher, cross_entropy, forward_kl, total_variation

N, V, K = 5, 40, 6


def case(seed: int, outside: float, sharp: float) -> tuple[Tensor, Teacher]:
    """Random logits and a teacher with a share of tokens outside the draft vocabulary."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(N, V, generator=g, dtype=torch.float32) * sharp
    ids = torch.stack([torch.randperm(V, generator=g)[:K] for _ in range(N)])
    probs = torch.rand(N, K + 1, generator=g).softmax(-1)
    gone = torch.rand(N, K, generator=g) < outside
    return logits, Teacher(ids.masked_fill(gone, -1), probs[:, :K] * ~gone, probs[:, K])


def buckets(logits: Tensor, teacher: Teacher, n: int) -> tuple[Tensor, Tensor]:
    """Row ``n`` as explicit distributions over (known tokens…, everything else): target (mass inside), draft."""
    q = logits[n].double().softmax(-1)
    known = [(int(i), float(p)) for i, p in zip(teacher.ids[n], teacher.probs[n], strict=True) if i >= 0]
    draft = [q[i] for i, _ in known]
    return (
        torch.tensor([p for _, p in known] + [float(teacher.rest[n])], dtype=torch.float64),
        torch.stack([*draft, 1 - sum(draft, torch.tensor(0.0, dtype=torch.float64))]),
    )


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 1.0]), st.floats(0.1, 4.0))
@settings(max_examples=60, deadline=None)
def test_forward_kl_is_the_bucketed_divergence_by_the_mass_inside(seed: int, outside: float, sharp: float) -> None:
    logits, teacher = case(seed, outside, sharp)
    got = forward_kl(logits, teacher)
    for n in range(N):
        p, q = buckets(logits, teacher, n)
        mass = p.sum()
        conditioned = p / mass
        want = (
            mass * (conditioned * (conditioned / q.clamp(min=1e-30)).log()).sum() if len(p) > 1 else torch.tensor(0.0)
        )
        assert float(got[n]) == pytest.approx(float(want), abs=2e-5)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=30, deadline=None)
def test_gradient_of_forward_kl_equals_autograds(seed: int, outside: float) -> None:
    logits, teacher = case(seed, outside, 2.0)
    weight = torch.rand(N)
    leaf = logits.clone().requires_grad_()
    (got,) = torch.autograd.grad((forward_kl(leaf, teacher) * weight).sum(), leaf)
    plain = logits.double().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    q = plain.softmax(-1)
    for n in range(N):
        known = teacher.ids[n][teacher.ids[n] >= 0]
        if known.numel():
            p = teacher.probs[n][teacher.ids[n] >= 0].double()
            rest = 1 - q[n, known].sum()
            total = total - weight[n] * ((p * q[n, known].log()).sum() + teacher.rest[n] * rest.log())
    (want,) = torch.autograd.grad(total, plain) if total.requires_grad else (torch.zeros_like(plain),)
    torch.testing.assert_close(got, want.float(), atol=1e-5, rtol=1e-4)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=30, deadline=None)
def test_total_variation_is_one_minus_the_overlap(seed: int, outside: float) -> None:
    logits, teacher = case(seed, outside, 2.0)
    got = total_variation(logits, teacher)
    for n in range(N):
        p, q = buckets(logits, teacher, n)
        if len(p) > 1:
            assert float(got[n]) == pytest.approx(float(p.sum() - torch.minimum(p, q).sum()), abs=1e-5)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_cross_entropy_is_that_of_the_most_likely_token(seed: int) -> None:
    logits, teacher = case(seed, 0.5, 2.0)
    got = cross_entropy(logits, teacher)
    for n in range(N):
        first = int(teacher.ids[n, 0])
        want = float(-logits[n].log_softmax(-1)[first]) if first >= 0 else 0.0
        assert float(got[n]) == pytest.approx(want, abs=1e-5)


def test_a_perfect_draft_loses_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, V, generator=g)
    top = logits.softmax(-1).topk(K)
    teacher = Teacher(top.indices, top.values, 1 - top.values.sum(-1))
    assert float(forward_kl(logits, teacher).max()) < 1e-5
    assert float(total_variation(logits, teacher).max()) < 1e-5


def test_a_target_that_speaks_outside_the_vocabulary_moves_nothing() -> None:
    logits = torch.randn(1, V, requires_grad=True)
    teacher = Teacher(torch.full((1, K), -1), torch.zeros(1, K), torch.zeros(1))
    for loss in LOSSES.values():
        value = loss(logits, teacher).sum()
        assert float(value.detach()) == 0.0
        (grad,) = torch.autograd.grad(value, logits)
        assert float(grad.abs().max()) == 0.0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_never_see_nan_with_extreme_logits(name: str) -> None:
    logits = torch.full((1, V), -60.0)
    logits[0, 3] = 60.0
    logits.requires_grad_()
    teacher = Teacher(torch.tensor([[3, 4, -1]]), torch.tensor([[0.5, 0.2, 0.0]]), torch.tensor([0.1]))
    value = LOSSES[name](logits, teacher)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert bool(value.isfinite().all())
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_head_loss_has_autograds_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurora_runtime.training.head.ROWS", 2)  # several chunks
    _, teacher = case(7, 0.3, 1.0)
    hidden = torch.randn(N, 16, requires_grad=True)
    head = torch.randn(V, 16, requires_grad=True)
    weight = torch.rand(N)
    fused = head_loss(hidden, head, LOSSES[name], teacher, weight, torch.float32)
    plain = (LOSSES[name](hidden @ head.T, teacher) * weight).sum()
    assert float(fused.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    for got, want in zip(
        torch.autograd.grad(fused, (hidden, head)), torch.autograd.grad(plain, (hidden, head)), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)

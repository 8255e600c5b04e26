"""What is measured of each kernel: inputs of a real size, the torch code that it replaces, and the same for a compiler.

Needs torch and Triton only. On a CPU the kernels need Triton's interpreter (``TRITON_INTERPRET=1``).

``least_bytes`` counts each input once and each output once, so no implementation moves fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from aurora_runtime.kernels.adamw_average import AdamWStep, update_parameter
from aurora_runtime.kernels.bucket_logprobs import FusedBucketLogprobs
from aurora_runtime.kernels.capture_topk import scan_logits
from aurora_runtime.kernels.kernel_switch import Kernel
from aurora_runtime.kernels.trunk_attention import TrunkAttention
from aurora_runtime.serving.capture import top_tokens
from aurora_runtime.training.model.tree_attention import tree_attention
from aurora_runtime.training.objective.target_distribution import TINY, TargetDistribution, bucket_logprobs

Run = Callable[..., tuple[Tensor, ...]]
TOP_K: Final = 32
STEP: Final = AdamWStep(10, 1e-3, (0.9, 0.95), 1e-8, 1.0, 0.05)


@dataclass(frozen=True)
class Case:
    """One kernel at one size.

    Attributes:
        make: fresh inputs, because some implementations consume theirs.
        today: what runs while the kernel is off.
        compiled: the same in plain torch, with its heavy part compiled by the given function.
    """

    kernel: Kernel
    size: str
    make: Callable[[], tuple[Any, ...]]
    today: Run
    compiled: Callable[[Callable[[Any], Any]], Run]
    fused: Run
    least_bytes: int
    operations: int = 0


def cases(kernel: Kernel, device: torch.device, *, tiny: bool) -> list[Case]:
    """The cases of ``kernel``. ``tiny`` sizes suit an interpreter, the others are those of Qwen3-8B."""
    made: dict[Kernel, Callable[[], list[Case]]] = {
        Kernel.BUCKET_LOGPROBS: lambda: [_bucket_logprobs(device, *((4, 96) if tiny else (1024, 32000)))],
        Kernel.ADAMW_AVERAGE: lambda: [_adamw_average(device, 1500 if tiny else 32000 * 4096)],
        Kernel.CAPTURE_TOPK: lambda: [
            _capture_topk(device, rows, 500 if tiny else 151936) for rows in ((3,) if tiny else (4, 192))
        ],
        Kernel.TREE_ATTENTION: lambda: [
            _tree_attention(device, nodes, slots, *((2, 1, 16) if tiny else (32, 8, 128)))
            for nodes, slots in (((20, 24),) if tiny else ((512, 512), (4096, 4096)))
        ],
    }
    return made[kernel]()


def _random(device: torch.device, *shape: int, spread: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator(device).manual_seed(1)
    return (torch.randn(*shape, generator=generator, device=device) * spread).to(dtype)


def _bucket_logprobs(device: torch.device, rows: int, tokens: int) -> Case:
    logits = _random(device, rows, tokens, spread=4.0, dtype=torch.bfloat16)
    step = tokens // TOP_K if tokens > TOP_K else 1
    ids = (torch.arange(rows, device=device)[:, None] + step * torch.arange(TOP_K, device=device)) % tokens
    ids = ids.masked_fill(_random(device, rows, TOP_K) > 1.0, -1)
    upstream = _random(device, rows, TOP_K).abs(), _random(device, rows).abs()

    def with_gradient(forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Run:
        def run(logits: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
            outputs = forward(logits.requires_grad_(), ids)
            (grad,) = torch.autograd.grad(outputs, logits, upstream)
            return *(output.detach() for output in outputs), grad

        return run

    def today(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return bucket_logprobs(logits, TargetDistribution(ids, upstream[0], upstream[1]))

    def plain(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.float().log_softmax(-1)
        inside = ids >= 0
        safe = ids.clamp(min=0)
        captured = torch.where(inside, scores.gather(1, safe), -torch.inf)
        mass = torch.where(inside, captured.exp(), 0.0).sum(-1)
        floor = torch.full_like(mass, TINY)
        return captured.clamp(min=floor.log()[:, None]), torch.maximum(1 - mass, floor).log()

    return Case(
        Kernel.BUCKET_LOGPROBS,
        f"{rows} rows x {tokens} tokens, bf16",
        lambda: (logits.clone(), ids),
        with_gradient(today),
        lambda compiler: with_gradient(compiler(plain)),
        with_gradient(lambda own, chosen: FusedBucketLogprobs.apply(own, chosen, TINY)),
        least_bytes=3 * logits.nbytes,
    )


def _adamw_average(device: torch.device, count: int) -> Case:
    weight, grad = _random(device, count), _random(device, count, spread=1e-3)
    norm = grad.norm() * 3

    def make() -> tuple[Any, ...]:
        moments = grad.clone(), grad.square()
        return weight.clone(), grad.clone(), *moments, weight.clone(), torch.empty_like(weight, dtype=torch.bfloat16)

    def today(own: Tensor, slope: Tensor, first: Tensor, second: Tensor, mean: Tensor, shadow: Tensor) -> Any:
        """Torch's own calls, and autocast's cast in the next forward pass."""
        parameter = torch.nn.Parameter(own)
        parameter.grad = slope
        optimizer = torch.optim.AdamW(
            [parameter], lr=STEP.rate, betas=STEP.betas, eps=STEP.eps, weight_decay=0.0, fused=True
        )
        number = torch.tensor(float(STEP.number - 1), device=device)
        optimizer.state[parameter] = {"step": number, "exp_avg": first, "exp_avg_sq": second}
        torch.nn.utils.clip_grads_with_norm_([parameter], STEP.max_norm, norm, foreach=True)
        optimizer.step()
        with torch.no_grad():
            mean.lerp_(parameter, STEP.average_weight)
            shadow.copy_(parameter)
        return parameter.detach(), first, second, mean, shadow

    def plain(own: Tensor, slope: Tensor, first: Tensor, second: Tensor, mean: Tensor, shadow: Tensor) -> Any:
        (beta1, beta2), number = STEP.betas, STEP.number
        scaled = slope * (STEP.max_norm / (norm + 1e-6)).clamp(max=1.0)
        first.lerp_(scaled, 1 - beta1)
        second.mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
        root = second.sqrt() / (1 - beta2**number) ** 0.5 + STEP.eps
        own.addcdiv_(first, root, value=-STEP.rate / (1 - beta1**number))
        mean.lerp_(own, STEP.average_weight)
        shadow.copy_(own)
        return own, first, second, mean, shadow

    def fused(own: Tensor, slope: Tensor, first: Tensor, second: Tensor, mean: Tensor, shadow: Tensor) -> Any:
        update_parameter(own, slope, (first, second), norm, STEP, average=mean, shadow=shadow)
        return own, first, second, mean, shadow

    return Case(
        Kernel.ADAMW_AVERAGE,
        f"{count} weights, float32",
        make,
        today,
        lambda compiler: compiler(plain),
        fused,
        least_bytes=38 * count,
    )


def _capture_topk(device: torch.device, rows: int, tokens: int) -> Case:
    logits = _random(device, rows, tokens, spread=4.0)

    def plain(own: Tensor) -> Any:
        highest, ids = own.log_softmax(-1).topk(TOP_K, dim=-1)
        return ids.to(torch.int32), highest.half(), (1 - highest.exp().sum(-1)).clamp(0, 1).half()

    def fused(own: Tensor) -> tuple[Tensor, ...]:
        return top_tokens.select_tokens(own, *scan_logits(own, top_tokens.BLOCK_TOKENS), TOP_K)

    return Case(
        Kernel.CAPTURE_TOPK,
        f"{rows} nodes x {tokens} tokens, float32",
        lambda: (logits,),
        lambda own: top_tokens.top_tokens(own, TOP_K),
        lambda compiler: compiler(plain),
        fused,
        least_bytes=logits.nbytes,
    )


def _tree_attention(device: torch.device, nodes: int, slots: int, heads: int, kv_heads: int, width: int) -> Case:
    """The roots: each slot of one sequence. Deeper nodes only add a few ancestors, which no kernel handles."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # Triton's interpreter cannot multiply bf16
    q = _random(device, 1, heads, nodes, width)
    k, v = _random(device, 1, kv_heads, slots, width), _random(device, 1, kv_heads, slots, width, dtype=dtype)
    root_slot = (torch.arange(nodes, device=device) * slots // nodes)[None]
    upstream = _random(device, 1, heads, nodes, width)

    def with_gradients(forward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Run:
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            out = forward(*leaves)
            return out.detach(), *torch.autograd.grad(out, leaves, upstream)

        return run

    def plain(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Scores in the products' type, as torch's own attention computes with a mask."""
        visible = torch.arange(slots, device=device) <= root_slot[:, :, None]
        q, k, v = (tensor.to(dtype) for tensor in (queries, keys, values))
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(q, k, v, attn_mask=visible[:, None], enable_gqa=True).float()

    visible_scores = heads * int((root_slot + 1).sum())
    return Case(
        Kernel.TREE_ATTENTION,
        f"{nodes} nodes x {slots} slots, {heads} heads of {width}",
        lambda: (q, k, v),
        with_gradients(lambda *inputs: tree_attention(inputs[0], (inputs[1], inputs[2]), root_slot, [])),
        lambda compiler: with_gradients(compiler(plain)),
        with_gradients(lambda *inputs: TrunkAttention.apply(*inputs, root_slot, dtype)[0]),
        least_bytes=4 * (4 * q.numel() + 3 * k.numel()) + 2 * v.nbytes,
        operations=2 * 7 * width * visible_scores,  # two products forwards, five backwards
    )

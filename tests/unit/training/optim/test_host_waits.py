"""Where a step makes the host wait for a GPU: nowhere but for the loss and the norm, which decide about the step.

So the host collates a batch while the GPU updates the weights. Here, without a GPU, the operators that would wait are
counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.optim.batch_loss import draft_outputs, loss_of_outputs
from aurora_runtime.training.optim.ema import WeightEma
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.optim.weight_update import update_weights
from tests.unit.training import tiny
from tests.unit.training.trees import tree_trace

ATEN = torch.ops.aten


class HostWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists the operators whose value or shape the host would have to fetch from a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators = list[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = function is ATEN.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if by_mask or function in (ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.masked_select.default):
            self.operators.append(str(function))
        return function(*args, **(kwargs or {}))


def test_no_pass_over_a_batch_waits_for_the_device(tmp_path: Path) -> None:
    draft, vocabulary = tiny.draft_of(tiny.target(tmp_path))
    recipe = Recipe()
    session = Session(draft, vocabulary, recipe, torch.device("cpu"))
    batch = session.batch([e for seed in range(3) for e in examples_of(tree_trace(seed), tiny.VOCAB)])
    with HostWaits() as forward:
        outputs = draft_outputs(draft, batch)
    with HostWaits() as loss:
        loss_of_outputs(draft, outputs, batch, recipe, lambda own: own).backward()  # type: ignore[no-untyped-call]
    optimizer, ema = torch.optim.AdamW(draft.parameters(), fused=True), WeightEma(draft, 10)
    norm = torch.nn.utils.get_total_norm([p.grad for p in draft.parameters() if p.grad is not None], foreach=True)
    with HostWaits() as update:
        update_weights(draft, optimizer, ema, norm, recipe.max_gradient_norm)
    with HostWaits() as seen:
        torch.ones(3)[torch.ones(3, dtype=torch.bool)]
    assert seen.operators, "the list sees what waits"
    assert not forward.operators + loss.operators + update.operators

"""What SGLang builds for our runtime states, and for those of its own ``--speculative-adaptive``. No server.

SGLang's own code builds the states. Stand-ins for graph runners and attention backends note what they are built for.
Each attention backend keeps page tables of its largest batch times the context, so a *row* is one request's table in
one backend. What a graph itself and the workspaces take shows on a GPU only.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.serving.speculation.controller import FixedArms
from aurora_runtime.serving.speculation.engine import EngineControl
from aurora_runtime.serving.speculation.hooks import WorkerHooks

pytestmark = pytest.mark.filterwarnings("ignore")  # of SGLang's imports

DRAFT_STEPS = 3
SIZES = [1, 2, 4, 8, *range(12, 33, 4), *range(40, 257, 8)]
STOCK_REQUESTS = 48
"""SGLang's own ``--max-running-requests`` for EAGLE (sglang/srt/arg_groups/speculative_hook.py:1086). Ours is 256."""


class Built:
    """A worker whose attention backends and graph runners are counted."""

    def __init__(self, patch: pytest.MonkeyPatch, sizes: list[int]) -> None:
        from sglang.srt.model_executor.cuda_graph_config import CudaGraphConfig, PhaseConfig
        from sglang.srt.speculative import eagle_worker_v2 as sglang

        self.graphs = self.backends = self.rows = 0
        self.config = CudaGraphConfig(decode=PhaseConfig(backend="full", bs=sizes))
        model = SimpleNamespace(speculative_num_steps=DRAFT_STEPS, speculative_num_draft_tokens=DRAFT_STEPS + 1)
        flags = SimpleNamespace(cuda_graph_config=self.config, cuda_graph_bs_decode=sizes, disable_cuda_graph=False)
        context = SimpleNamespace(override=lambda *_, **__: None)
        patch.setattr(sglang, "get_spec", lambda: SimpleNamespace(**vars(model), speculative_adaptive=True))
        patch.setattr(sglang, "get_exec", lambda: SimpleNamespace(graph=flags))
        patch.setattr(sglang, "get_context", lambda: context)
        patch.setattr(sglang, "get_model", lambda: SimpleNamespace(model_impl="auto"))
        patch.setattr(sglang, "check_cuda_graph_backend", lambda *_: False)
        patch.setattr(sglang, "get_available_gpu_memory", lambda *_: 0.0)
        patch.setattr(sglang, "get_batch_sizes_to_capture", lambda *_: (list(self.config.decode.bs or []), []))
        patch.setattr(sglang, "_is_cpu", False)
        patch.setattr(sglang, "_is_xpu", True)  # the platform whose runners need no library of the device
        patch.setattr(sglang, "DraftBackendFactory", self.factory)
        patch.setattr(sglang, "EAGLEDraftCudaGraphRunner", lambda draft: self.capture(draft.speculative_num_steps - 1))
        patch.setattr(sglang, "EAGLEDraftExtendCudaGraphRunner", lambda _: self.capture(1))
        patch.setattr(sglang, "DecodeCudaGraphRunner", lambda *_, **__: self.capture(1))
        runner = SimpleNamespace(
            model_config=SimpleNamespace(hf_config=SimpleNamespace()),
            kv_index_translator=SimpleNamespace(is_translating=False),
            draft_attn_backend=None,
            attn_backend=None,
        )
        self.draft = object.__new__(sglang.EagleDraftWorker)
        self.worker = object.__new__(sglang.EAGLEWorkerV2)
        target = SimpleNamespace(
            device="xpu",
            model_runner=SimpleNamespace(init_new_workspace=False, _get_attention_backend=lambda **_: "target"),
        )
        vars(self.draft).update(
            vars(model), draft_runner=runner, topk=1, device="xpu", gpu_id=0, target_worker=target,
            seed_dsa_topk_from_draft_extend=False, speculative_algorithm=SimpleNamespace(name="EAGLE3"),
            draft_attn_backend=None, draft_extend_attn_backend=None, cuda_graph_runner=None,
            cuda_graph_runner_for_draft_extend=None, _specialized_graph_memory_usage={},
            _specialized_graph_time_usage={}, _rebuild_topk1_chain_buffers=lambda: None,
        )  # fmt: skip
        vars(self.worker).update(
            vars(model), _draft_worker=self.draft, _target_worker=target, device="xpu", gpu_id=0,
            _additional_graph_memory_usage={}, _additional_graph_time_usage={},
        )  # fmt: skip

    def factory(self, _: Any, __: int, steps: int, **___: Any) -> Any:
        decode = SimpleNamespace(attn_backends=[]) if steps > 1 else None  # draft_utils.py:85
        return SimpleNamespace(create_decode_backend=lambda: decode, create_draft_extend_backend=lambda: "extend")

    def capture(self, backends: int) -> str:
        sizes = self.config.decode.bs or []
        self.graphs += len(sizes)
        self.backends += backends
        self.rows += backends * max(sizes)
        return "graphs"

    def first_state(self) -> None:
        """As ``BaseSpecWorker.init_cuda_graphs`` does for the first state."""
        self.draft.init_attention_backend()
        self.draft._capture_cuda_graphs()
        self.capture(1)

    def state(self, steps: int) -> None:
        self.worker.build_adaptive_runtime_state(steps, steps + 1)


def stock(patch: pytest.MonkeyPatch) -> Built:
    from sglang.srt.speculative.adaptive_spec_params import resolve_candidate_steps_from_config

    built = Built(patch, [size for size in SIZES if size <= STOCK_REQUESTS])
    built.first_state()
    for steps in resolve_candidate_steps_from_config():
        if steps != DRAFT_STEPS:
            built.state(steps)
    return built


def ours(patch: pytest.MonkeyPatch) -> Built:
    from sglang.srt.speculative import eagle_worker_v2 as sglang

    built = Built(patch, SIZES)
    settings = SpeculationSettings(state_folder="/state", boot="b", draft_steps=DRAFT_STEPS)
    hooks = WorkerHooks(settings, FixedArms(["off"]), SimpleNamespace(errors=0), refuse=pytest.fail, read_version=str)  # type: ignore[arg-type]
    control = object.__new__(EngineControl)
    control._graphs, control._sizes = built.config.decode, SIZES
    hooks._control = control
    for owner, name, hook in (
        (sglang.EagleDraftWorker, "init_attention_backend", hooks.around_draft_side),
        (sglang.EagleDraftWorker, "_capture_cuda_graphs", hooks.around_draft_side),
        (sglang.EAGLEWorkerV2, "build_adaptive_runtime_state", hooks.around_state),
    ):
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *a, _o=original, _h=hook, **k: _h(_o, *a, **k))
    with control.graphs_for(DRAFT_STEPS + 1):
        built.first_state()
        for steps in sorted({arm.steps for arm in settings.arms} - {DRAFT_STEPS}):
            built.state(steps)
    assert hooks._held is False
    assert built.config.decode.bs == SIZES
    return built


def test_our_states_for_256_requests_take_about_the_rows_of_stock_for_48() -> None:
    with pytest.MonkeyPatch.context() as patch:
        own = ours(patch)
    with pytest.MonkeyPatch.context() as patch:
        theirs = stock(patch)
    assert (own.graphs, own.backends, own.rows) == (226, 12, 1376)
    assert (theirs.graphs, theirs.backends, theirs.rows) == (156, 22, 1056)
    assert own.rows <= 1.31 * theirs.rows

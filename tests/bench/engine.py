"""How long does a step take on the CPU engine, and above which acceptance length is speculation faster?

Three servers run side by side and answer in turn, so that a noisy machine is equally noisy to all of them:

- stock: SGLang on a CPU without our replacements (torch_native attention, plain linears);
- ours: our CPU engine without speculation;
- ours, draft: our CPU engine with an untrained EAGLE-3 draft. A round costs the same with a trained draft.

Prints a table of medians [quartiles] per concurrency. The break-even acceptance length is the cost of a round over the
cost of a step: a draft with a longer acceptance length is faster than no draft.

Takes about five minutes on two quiet cores (estimated). Needs a CPU only. Every server uses one thread, in bf16.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft
from tests.assets.sglang_server import DRAFT_STEPS, Server, sglang_server
from tests.bench.bench_command import (
    add_lock_option,
    bench_parser,
    exit_on_sigterm,
    hold_lock,
    load_around,
    load_average,
)
from tests.bench.markdown import markdown_table, median_and_quartiles
from tests.bench.stream_timing import CONCURRENCIES, StepTiming, time_in_turn

from aurora_runtime.cpu.launch_settings import STANDIN, environment, server_args

NAMES_ONLY = '''"""Names for SGLang to import on a CPU. Nothing calls them without speculation."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *_: None
'''
"""The source of an `sgl_kernel` without operations, for the stock server."""


@contextlib.contextmanager
def three_servers(folder: Path) -> Iterator[list[tuple[str, Server]]]:
    """Start the three servers, yield their names and handles, and stop them. Files and logs go to ``folder``."""
    names_only = folder / "names"
    (names_only / "sgl_kernel").mkdir(parents=True)
    for module in ("__init__", "utils", "speculative"):
        (names_only / "sgl_kernel" / f"{module}.py").write_text(NAMES_ONLY)
    model = ensure_model()
    draft = write_random_draft(folder / "draft", model)
    ours = environment()
    stock_path = ours["PYTHONPATH"].replace(str(STANDIN), str(names_only))
    stock_args = [*_without_attention_backends(server_args(False)), "--attention-backend", "torch_native"]
    with contextlib.ExitStack() as stack:
        stock = sglang_server(
            model,
            engine_args=stock_args,
            env={**ours, "PYTHONPATH": stock_path},
            plugins="none",
            log=folder / "stock.log",
        )
        yield [
            ("stock", stack.enter_context(stock)),
            ("ours", stack.enter_context(sglang_server(model, log=folder / "ours.log"))),
            ("ours, draft", stack.enter_context(sglang_server(model, draft, log=folder / "draft.log"))),
        ]


def _without_attention_backends(arguments: Sequence[str]) -> list[str]:
    """``arguments`` without the flags that name an attention backend, and without their values."""
    remaining, is_value = [], False
    for argument in arguments:
        is_flag = argument.endswith("-attention-backend")
        if not is_value and not is_flag:
            remaining.append(argument)
        is_value = is_flag
    return remaining


def table(timings: dict[tuple[str, int], list[StepTiming]]) -> str:
    """A row per concurrency: median [quartiles] per server, and the break-even acceptance length."""
    head = [
        "concurrency",
        "stock, ms per step",
        "ours, ms per step",
        f"ours with a draft, ms per round of {DRAFT_STEPS} draft steps",
        "break-even acceptance length",
        "requests per server",
    ]
    rows = []
    for concurrency in CONCURRENCIES:
        columns = [
            [timing.milliseconds_per_step for timing in timings[name, concurrency]]
            for name in ("stock", "ours", "ours, draft")
        ]
        _, step, verify_round = map(statistics.median, columns)
        cells = map(median_and_quartiles, columns)
        rows.append([str(concurrency), *cells, f"{verify_round / step:.2f}", str(len(columns[0]))])
    return markdown_table(head, rows)


def main() -> None:
    parser = bench_parser("tests.bench.engine", __doc__)
    parser.add_argument("--rounds", type=int, default=8, help="measured rounds; one more warms up")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of every answer")
    add_lock_option(parser)
    options = parser.parse_args()
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as folder, three_servers(Path(folder)) as servers:
        for name, server in servers:
            print(f"{name}: ready after {server.startup_seconds:.0f} s", flush=True)
        with hold_lock(options.lock):
            load_before = load_average()
            timings = time_in_turn(servers, options.rounds, options.tokens)
        print(f"{load_around(load_before)}; one thread per process; bf16\n")
        print(table(timings))


if __name__ == "__main__":
    main()

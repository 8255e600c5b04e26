"""How long a step takes on the CPU engine, and from which acceptance length on speculation pays.

Three servers run side by side and are asked in turn, so that a noisy machine is equally noisy to all: stock SGLang on a
CPU (torch_native attention, plain linears), our engine without speculation, our engine with an untrained EAGLE-3 draft
(whose rounds cost what a trained one's do). Prints a Markdown table of medians and quartiles.

    python -m tests.bench.engine [--rounds 8] [--tokens 48] [--lock FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http
import http.client
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft
from tests.assets.sglang_server import NUM_STEPS, Server, sglang_server

from aurora_runtime.cpu.launch_settings import STANDIN, environment, server_args
from aurora_runtime.errors import EngineFault

CONCURRENCIES = (1, 4)
PROMPTS = (
    "Write a short story about a lighthouse keeper who finds a map.",
    "Explain how a bicycle stays upright, for a child.",
    "List some ways in which a small town could save water.",
    "Describe a walk through a market early in the morning.",
)
NAMES_ONLY = '''"""Names for SGLang to import on a CPU; nothing calls them without speculation."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *_: None
'''


@dataclass(frozen=True)
class Timing:
    """Milliseconds per model step (without speculation) or per round (with), of one request."""

    milliseconds: float
    tokens_per_step: float


def generate(port: int, prompt: str, tokens: int, rid: str | None = None) -> Timing:
    """Stream one request to its full length and time what lies between its first and last output."""
    body = {
        "text": prompt,
        "rid": rid,
        "stream": True,
        "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
    }
    first, begun = 0.0, dict[str, Any]()
    last, ended = 0.0, dict[str, Any]()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        connection.request("POST", "/generate", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise EngineFault(f"/generate: status {response.status}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            last, ended = time.perf_counter(), json.loads(line[6:])["meta_info"]
            if not begun:
                first, begun = last, ended
    if not begun:
        raise EngineFault("/generate: nothing was streamed")
    made = ended["completion_tokens"] - begun["completion_tokens"]
    steps = ended["spec_verify_ct"] - begun.get("spec_verify_ct", 0) if "spec_verify_ct" in ended else made
    if not steps:
        raise EngineFault("/generate: all of the answer came at once")
    return Timing(1000 * (last - first) / steps, made / steps)


def measure(servers: Sequence[tuple[str, Server]], rounds: int, tokens: int) -> dict[tuple[str, int], list[Timing]]:
    """Ask every server in turn, `rounds` times at each concurrency; the first round warms up and is dropped."""
    samples: dict[tuple[str, int], list[Timing]] = {}
    with ThreadPoolExecutor(max(CONCURRENCIES)) as pool:
        for number in range(rounds + 1):
            for concurrency in CONCURRENCIES:
                for name, server in servers:
                    asked = [PROMPTS[(number + offset) % len(PROMPTS)] for offset in range(concurrency)]
                    timings = list(pool.map(lambda prompt, port=server.port: generate(port, prompt, tokens), asked))
                    if number > 0:
                        samples.setdefault((name, concurrency), []).extend(timings)
    return samples


@contextlib.contextmanager
def three_servers(work: Path) -> Iterator[list[tuple[str, Server]]]:
    """Stock, ours without speculation, ours with an untrained draft."""
    names_only = work / "names"
    (names_only / "sgl_kernel").mkdir(parents=True)
    for module in ("__init__", "utils", "speculative"):
        (names_only / "sgl_kernel" / f"{module}.py").write_text(NAMES_ONLY)
    model = ensure_model()
    draft = write_random_draft(work / "draft", model)
    ours = environment()
    stock_path = ours["PYTHONPATH"].replace(str(STANDIN), str(names_only))
    stock_args = [*_without_attention(server_args(False)), "--attention-backend", "torch_native"]
    with contextlib.ExitStack() as stack:
        stock = sglang_server(
            model,
            engine_args=stock_args,
            env={**ours, "PYTHONPATH": stock_path},
            plugins="none",
            log=work / "stock.log",
        )
        yield [
            ("stock", stack.enter_context(stock)),
            ("ours", stack.enter_context(sglang_server(model, log=work / "ours.log"))),
            ("ours, draft", stack.enter_context(sglang_server(model, draft, log=work / "draft.log"))),
        ]


def _without_attention(arguments: Sequence[str]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.endswith("-attention-backend"):
            kept.append(argument)
        skip = argument.endswith("-attention-backend")
    return kept


def table(samples: dict[tuple[str, int], list[Timing]]) -> str:
    """Markdown: median [quartiles] per engine and concurrency, and the break-even acceptance length."""
    lines = [
        f"| | stock, ms/step | ours, ms/step | ours, ms/round at {NUM_STEPS} steps | break-even | n |",
        "|---|---|---|---|---|---|",
    ]
    for concurrency in CONCURRENCIES:
        columns = [samples[name, concurrency] for name in ("stock", "ours", "ours, draft")]
        medians = [statistics.median(t.milliseconds for t in column) for column in columns]
        cells = [_cell([t.milliseconds for t in column]) for column in columns]
        break_even = f"{medians[2] / medians[1]:.2f}"
        row = [f"concurrency {concurrency}", *cells, break_even, str(len(columns[0]))]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} [{low:.1f}-{high:.1f}]"


@contextlib.contextmanager
def held(lock: Path | None) -> Iterator[None]:
    """Hold a lock file while measuring, where several measurements share a machine."""
    if lock is None:
        yield
        return
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--lock", type=Path, default=None, help="hold this lock file while measuring")
    options = parser.parse_args()
    # A plain SIGTERM would end this process without ending the servers.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as work, three_servers(Path(work)) as servers:
        for name, server in servers:
            print(f"{name}: ready after {server.startup_s:.0f} s", flush=True)
        with held(options.lock):
            before = os.getloadavg()[0]
            samples = measure(servers, options.rounds, options.tokens)
        print(f"load before {before:.1f}, after {os.getloadavg()[0]:.1f}; one thread per process; bf16\n")
        print(table(samples))


if __name__ == "__main__":
    main()

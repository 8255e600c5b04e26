"""What capture costs the serving path (promise 5): rounds of traced and of untraced requests on one server, in pairs.

Both sides of a pair answer the same prompts right after each other, in alternating order, so that a noisy machine is
equally noisy to both; only their request ids differ, by which capture decides what it traces. The draft is untrained:
its rounds cost what a trained one's do, and there are more of them per token, so capture has the most to do.

    python -m tests.bench.capture [--pairs 40] [--tokens 48] [--lock FILE]
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import signal
import statistics
import sys
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft
from tests.assets.sglang_server import Server, sglang_server
from tests.bench.engine import CONCURRENCIES, PROMPTS, generate, held

from aurora_runtime.serving.capture.shard_writer import sampled
from aurora_runtime.serving.pod_files import CAPTURE_VARIABLE, PROBE_PREFIX, CaptureSettings, CaptureState, PodFolder

HALF = Decimal("0.5")


def ids(traced: bool) -> Iterator[str]:
    """Fresh request ids on one side of the sampling."""
    return (rid for _ in itertools.count() if sampled(rid := uuid.uuid4().hex, HALF) is traced)


def milliseconds(server: Server, asked: list[tuple[str, str]], tokens: int, pool: ThreadPoolExecutor) -> float:
    """Mean milliseconds per verify round over requests ``(prompt, rid)`` sent at once."""
    timings = pool.map(lambda pair: generate(server.port, pair[0], tokens, pair[1]), asked)
    return statistics.fmean(timing.milliseconds for timing in timings)


def ratios(server: Server, concurrency: int, pairs: int, tokens: int) -> list[float]:
    """Speed of traced over untraced requests, pair by pair; the first pair warms up and is dropped."""
    fresh = {traced: ids(traced) for traced in (True, False)}
    found = []
    with ThreadPoolExecutor(concurrency) as pool:
        for number in range(pairs + 1):
            took = {}
            for traced in (True, False) if number % 2 else (False, True):
                prompts = [PROMPTS[(number + i) % len(PROMPTS)] for i in range(concurrency)]
                took[traced] = milliseconds(server, [(p, next(fresh[traced])) for p in prompts], tokens, pool)
            if number:
                found.append(took[False] / took[True])
    return found


def line(concurrency: int, found: list[float]) -> str:
    """A row of the table: the geometric mean with its 95 % interval (normal; dozens of pairs), and the quartiles."""
    logs = [math.log(ratio) for ratio in found]
    mean, error = statistics.fmean(logs), 1.96 * statistics.stdev(logs) / math.sqrt(len(logs))
    low, middle, high = statistics.quantiles(found, n=4)
    interval = f"{math.exp(mean):.3f} [{math.exp(mean - error):.3f}, {math.exp(mean + error):.3f}]"
    return f"| {concurrency} | {interval} | {middle:.3f} [{low:.3f}-{high:.3f}] | {len(found)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--lock", type=Path, default=None, help="hold this lock file while measuring")
    options = parser.parse_args()
    # A plain SIGTERM would end this process without ending the server.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="capture-bench-") as work, held(options.lock):
        settings = CaptureSettings(
            state=work, lineage=1, pod="bench", boot="bench", sample_ratio=str(HALF), shard_seconds=20
        )
        model = ensure_model()
        draft = write_random_draft(Path(work, "draft"), model)
        variables = {CAPTURE_VARIABLE: settings.to_json().decode()}
        with sglang_server(
            model, draft, env=variables, plugins="aurora_cpu,aurora_vocabulary,aurora_capture"
        ) as server:
            generate(server.port, PROMPTS[0], 8, PROBE_PREFIX + uuid.uuid4().hex)
            before = os.getloadavg()[0]
            print("| concurrency | traced/untraced speed [95 %] | median [quartiles] | pairs |\n|---|---|---|---|")
            for concurrency in CONCURRENCIES:
                print(line(concurrency, ratios(server, concurrency, options.pairs, options.tokens)), flush=True)
        state = CaptureState.from_json(PodFolder(Path(work)).capture.read_bytes())
        print(f"load before {before:.1f}, after {os.getloadavg()[0]:.1f}; one thread; bf16; {options.tokens} tokens")
        print(f"{state.captured_records} records captured, {state.dropped_records} dropped, {state.errors} errors")


if __name__ == "__main__":
    main()

"""How much slower does a server answer when capture traces the requests? (Promise 5.)

One server answers traced and untraced requests in pairs. Both sides of a pair answer the same prompts right after each
other, in alternating order, so that a noisy machine is equally noisy to both. They differ only in their request ids, by
which capture selects the requests to trace. The draft is untrained. Its rounds cost the same as a trained draft's, and
there are more of them per token, so capture has the most to do.

Prints the ratio of traced to untraced speed per concurrency. A ratio below 1 means that capture costs speed. Also
prints the CPU time of the scheduler's thread and of the other threads in its process, relative to that of the
scheduler's thread for untraced requests. CPU time is less noisy than speed where other processes want the same cores.

Takes about ten minutes on two quiet cores (estimated). Needs a CPU only. The server uses one thread, in bf16.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft
from tests.assets.sglang_server import Server, sglang_server
from tests.assets.trace_budget import TRACE_ALL
from tests.bench.bench_command import bench_parser, exit_on_sigterm, load_around, load_average
from tests.bench.markdown import geometric_mean_and_interval, markdown_row, markdown_table
from tests.bench.stream_timing import CONCURRENCIES, PROMPTS, time_stream

from aurora_runtime.serving.capture.settings import CAPTURE_VARIABLE, PROBE_PREFIX, CaptureSettings
from aurora_runtime.serving.pod_files import PodFolder

HEADER = [
    "concurrency",
    "traced/untraced speed [95 %]",
    "median [quartiles]",
    "CPU of the scheduler's thread, traced",
    "of the other threads, traced",
    "of the other threads, untraced",
    "pairs",
]


def milliseconds_per_round(
    server: Server, prompts: list[str], tokens: int, pool: ThreadPoolExecutor, *, traced: bool
) -> float:
    """Mean milliseconds per verify round of ``prompts``, all sent at once."""
    return statistics.fmean(
        pool.map(lambda prompt: time_stream(server.port, prompt, tokens, wish={"trace": traced}), prompts)
    )


@dataclass(frozen=True)
class CpuSeconds:
    """CPU time of SGLang's scheduler process: of the thread that runs the model, and of all other threads."""

    scheduler: float
    others: float

    def __add__(self, other: CpuSeconds) -> CpuSeconds:
        return CpuSeconds(self.scheduler + other.scheduler, self.others + other.others)

    def __sub__(self, other: CpuSeconds) -> CpuSeconds:
        return CpuSeconds(self.scheduler - other.scheduler, self.others - other.others)

    @classmethod
    def read(cls, pid: int) -> CpuSeconds:
        """The time so far. The kernel counts in steps of 10 ms."""
        stats = {int(path.parent.name): path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")}
        # Fields 14 and 15 of proc_pid_stat(5), counted behind the name, which may hold anything.
        ticks = {thread: sum(map(int, stat.rpartition(")")[2].split()[11:13])) for thread, stat in stats.items()}
        per_second = os.sysconf("SC_CLK_TCK")
        return cls(ticks[pid] / per_second, (sum(ticks.values()) - ticks[pid]) / per_second)


def scheduler_pid(server: Server) -> int:
    """The process in which SGLang runs the model.

    Raises:
        LookupError: The server has no such process.
    """
    for child in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().startswith("sglang::sched"):
            return int(child)
    raise LookupError(f"process {server.pid} has no scheduler")


@dataclass
class Comparison:
    """Traced and untraced requests in pairs: the speed of each pair, and the CPU time of each side."""

    speeds: list[float] = field(default_factory=list)
    traced: CpuSeconds = CpuSeconds(0, 0)
    untraced: CpuSeconds = CpuSeconds(0, 0)


def compare(server: Server, concurrency: int, pairs: int, tokens: int) -> Comparison:
    """Compare pair by pair. One more pair before them warms up."""
    process, found = scheduler_pid(server), Comparison()
    with ThreadPoolExecutor(concurrency) as pool:
        for number in range(pairs + 1):
            prompts = [PROMPTS[(number + i) % len(PROMPTS)] for i in range(concurrency)]
            milliseconds, cpu = dict[bool, float](), dict[bool, CpuSeconds]()
            for traced in (True, False) if number % 2 else (False, True):
                before = CpuSeconds.read(process)
                milliseconds[traced] = milliseconds_per_round(server, prompts, tokens, pool, traced=traced)
                cpu[traced] = CpuSeconds.read(process) - before
            if number:
                found.speeds.append(milliseconds[False] / milliseconds[True])
                found.traced += cpu[True]
                found.untraced += cpu[False]
    return found


def cells(concurrency: int, found: Comparison) -> list[str]:
    """The cells of a row."""
    speeds, whole = found.speeds, found.untraced.scheduler
    low, middle, high = statistics.quantiles(speeds, n=4)
    interval = geometric_mean_and_interval(speeds)
    shares = [f"{cpu / whole:.3f}" for cpu in (found.traced.scheduler, found.traced.others, found.untraced.others)]
    return [str(concurrency), interval, f"{middle:.3f} [{low:.3f}-{high:.3f}]", *shares, str(len(speeds))]


def main() -> None:
    parser = bench_parser("tests.bench.capture", __doc__)
    parser.add_argument("--pairs", type=int, default=40, help="measured pairs per concurrency; one more warms up")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of every answer")
    options = parser.parse_args()
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="capture-bench-") as folder:
        settings = CaptureSettings(
            state_folder=folder,
            lineage=1,
            pod="bench",
            boot="bench",
            tokens_per_minute=TRACE_ALL,
            shard_seconds=20,
        )
        model = ensure_model()
        draft = write_random_draft(Path(folder, "draft"), model)
        variables = {CAPTURE_VARIABLE: settings.to_json().decode()}
        with sglang_server(
            model, draft, ("--weight-version", "0"), variables, plugins="aurora_cpu,aurora_vocabulary,aurora_capture"
        ) as server:
            time_stream(server.port, PROMPTS[0], 8, PROBE_PREFIX + uuid.uuid4().hex)
            load_before = load_average()
            print(markdown_table(HEADER, []))
            for concurrency in CONCURRENCIES:
                found = compare(server, concurrency, options.pairs, options.tokens)
                print(markdown_row(cells(concurrency, found)), flush=True)
        state = PodFolder(Path(folder)).read_capture_state()
        assert state is not None
        load = load_around(load_before)
        print(f"{load}; one thread; bf16; {options.tokens} tokens per answer")
        print(f"{state.captured_records} records captured, {state.dropped_records} dropped, {state.hook_errors} errors")


if __name__ == "__main__":
    main()

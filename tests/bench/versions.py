"""Does this version serve slower than a former one? Both capture every request.

A server of each version answers the same prompts right after the other, in alternating order. The time of a batch runs
from its first request to its last token, so whatever a version does to a request on its way counts. Both use the same
SGLang, model and untrained draft, whose rounds cost as much as a trained draft's.

Prints the ratio of this version's speed to the former one's per concurrency. A ratio below 1 means that this version is
slower.

Takes about ten minutes on two quiet cores. Needs a CPU only. Each server uses one thread, in bf16.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft
from tests.assets.sglang_server import Server, sglang_server
from tests.bench.bench_command import (
    add_lock_option,
    bench_parser,
    commit,
    exit_on_sigterm,
    hold_lock,
    load_around,
    load_average,
    machine,
)
from tests.bench.markdown import geometric_mean_and_interval, markdown_row, markdown_table
from tests.bench.stream_timing import CONCURRENCIES, PROMPTS, time_stream
from tests.rig.former_version import REVISION_VARIABLE, check_out_former_version, former_revision
from tests.rig.local_image import PACKAGE_ROOTS

from aurora_runtime.cpu.launch_settings import environment
from aurora_runtime.serving.capture.settings import CAPTURE_VARIABLE, PROBE_PREFIX
from aurora_runtime.serving.pod_files import PodFolder

PLUGINS = "aurora_cpu,aurora_vocabulary,aurora_capture"


@contextlib.contextmanager
def capturing_server(checkout: Path, folder: Path, model: Path, draft: Path) -> Iterator[Server]:
    """A server with the packages of ``checkout``, which captures every request into ``folder``."""
    folder.mkdir()
    # Only settings that every version knows. Each version refuses those that it does not know.
    settings = {"state_folder": str(folder), "lineage": 1, "pod": "bench", "boot": "bench", "shard_seconds": 20}
    packages = os.pathsep.join(str(checkout / root) for root in PACKAGE_ROOTS)
    variables = {
        CAPTURE_VARIABLE: json.dumps(settings),
        "PYTHONPATH": environment({"PYTHONPATH": packages})["PYTHONPATH"],  # with this version's stand-in for a CPU
    }
    with sglang_server(model, draft, ("--weight-version", "0"), variables, plugins=PLUGINS) as server:
        time_stream(server.port, PROMPTS[0], 8, PROBE_PREFIX + uuid.uuid4().hex)
        yield server


def batch_seconds(server: Server, prompts: list[str], tokens: int, pool: ThreadPoolExecutor) -> float:
    """The time from the first request of a batch to its last token. All requests are sent at once."""
    began = time.perf_counter()
    list(pool.map(lambda prompt: time_stream(server.port, prompt, tokens), prompts))
    return time.perf_counter() - began


def speeds(ours: Server, former: Server, concurrency: int, pairs: int, tokens: int) -> list[float]:
    """The speed of our version over the former one's, pair by pair. One more pair before them warms up."""
    found = []
    with ThreadPoolExecutor(concurrency) as pool:
        for number in range(pairs + 1):
            prompts = [PROMPTS[(number + i) % len(PROMPTS)] for i in range(concurrency)]
            order = (ours, former) if number % 2 else (former, ours)
            seconds = {server.port: batch_seconds(server, prompts, tokens, pool) for server in order}
            if number:
                found.append(seconds[former.port] / seconds[ours.port])
    return found


def cells(concurrency: int, found: list[float]) -> list[str]:
    """The cells of a row."""
    return [str(concurrency), geometric_mean_and_interval(found), str(len(found))]


def main() -> None:
    parser = bench_parser("tests.bench.versions", __doc__)
    parser.add_argument("--former", help="git revision to compare with (default: before the last change of a package)")
    parser.add_argument("--pairs", type=int, default=40, help="measured pairs per concurrency; one more warms up")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of every answer")
    add_lock_option(parser)
    options = parser.parse_args()
    if options.former:
        os.environ[REVISION_VARIABLE] = options.former
    exit_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="versions-bench-") as name, hold_lock(options.lock):
        folder, model = Path(name), ensure_model()
        draft = write_random_draft(folder / "draft", model)
        (checkout := folder / "former").mkdir()
        check_out_former_version(checkout)
        with (
            capturing_server(Path.cwd(), folder / "ours-state", model, draft) as ours,
            capturing_server(checkout, folder / "former-state", model, draft) as former,
        ):
            load_before = load_average()
            print(markdown_table(["concurrency", "this version / former version [95 %]", "pairs"], []))
            for concurrency in CONCURRENCIES:
                found = speeds(ours, former, concurrency, options.pairs, options.tokens)
                print(markdown_row(cells(concurrency, found)), flush=True)
        for state in (folder / "ours-state", folder / "former-state"):
            captured = PodFolder(state).read_capture_state()
            assert captured is not None
            print(f"{captured.captured_records} records captured, {captured.hook_errors} errors")
        load = load_around(load_before)
        compared = f"{commit()} against {former_revision()[:7]}"
        print(f"{compared}; {machine()}; {load}; one thread; bf16; {options.tokens} tokens per answer")


if __name__ == "__main__":
    main()

"""Does a draft learn as well from hidden states in 8 bits as from those in 16?

Trains a draft on recorded requests of one domain, once on the states as captured and once after packing
them. The requests come in another order for every seed. Both drafts are then compared on the held-out requests with
their states in 16 bits, because an engine packs nothing for the draft that it serves.

Prints the acceptance lengths by seed, their difference, the bytes of a traced position, and the CPU time in which a pod
writes a position to a shard, without the disk. Needs a CPU only.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tests.assets.traces.recorded import domain_traces
from tests.assets.trained_draft import train_draft, untrained_draft
from tests.bench.bench_command import bench_parser, commit, machine
from tests.bench.markdown import markdown_table
from tests.traffic.prompts import Domain

from aurora_protocol.pod_settings import StateType
from aurora_runtime.serving.capture.safetensors_writer import write_safetensors
from aurora_runtime.traces import RequestTrace, decode, encode, shard_tensors
from aurora_runtime.training.data.examples import examples_of
from aurora_runtime.training.evaluation import evaluate

STEPS = 3


def acceptance_length(training: Sequence[RequestTrace], held_out: Sequence[RequestTrace]) -> float:
    """The acceptance length on ``held_out`` of a draft that learned from ``training`` in this order."""
    draft, vocabulary = untrained_draft()
    trained = train_draft(draft, vocabulary, training)
    examples = [each for trace in held_out for each in examples_of(trace, draft.config.vocab_size)]
    return evaluate(trained.session.served, examples, vocabulary, STEPS).acceptance_length


def bytes_per_unit(traces: Sequence[RequestTrace], state_type: StateType) -> float:
    """Bytes of a shard for each traced position and unit of the target's hidden size."""
    positions = sum(trace.hidden.shape[0] for trace in traces)
    return len(encode(traces, state_type)) / positions / (traces[0].hidden.shape[1] / 3)


def microseconds(traces: Sequence[RequestTrace], state_type: StateType) -> float:
    """CPU time of a traced position in the writer's thread: the shard's tensors, its file in memory and its digest.

    The least of ten, because the machine is shared.
    """
    seconds = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for _ in range(10):
            began = time.process_time()
            write_safetensors(Path(folder) / "shard", shard_tensors(traces, state_type))
            seconds.append(time.process_time() - began)
    return 1e6 * min(seconds) / sum(trace.hidden.shape[0] for trace in traces)


def main() -> None:
    parser = bench_parser("tests.bench.learning.packed_states", __doc__)
    parser.add_argument("--traffic", nargs="+", default=[Domain.EXTRACTION, Domain.SQL], type=Domain, help="domains")
    parser.add_argument("--seeds", nargs="+", default=[0, 1, 2], type=int, help="orders of the requests")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for domain in options.traffic:
        traces = domain_traces(domain)
        held_out = [trace for trace in traces if trace.held_out]
        for seed in options.seeds:
            training = [trace for trace in traces if not trace.held_out]
            random.Random(seed).shuffle(training)  # noqa: S311
            whole = acceptance_length(training, held_out)
            packed = acceptance_length(list(decode(encode(training, StateType.FLOAT8))), held_out)
            rows.append((domain, seed, f"{whole:.3f}", f"{packed:.3f}", f"{packed - whole:+.3f}"))
        sizes = [f"{bytes_per_unit(traces, state_type):.2f}" for state_type in StateType]
        rows.append((domain, "bytes per position and hidden unit", *sizes, ""))
        times = [f"{microseconds(traces, state_type):.1f}" for state_type in StateType]
        rows.append((domain, "CPU microseconds per position", *times, ""))
    print(f"{machine()}, commit {commit()}\n")
    print(markdown_table(("Traffic", "Seed", "16 bits", "8 bits", "Difference"), rows))


if __name__ == "__main__":
    main()

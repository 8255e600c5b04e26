"""Records rounds: what lookup and a draft would get right after every token of SmolLM2's answers.

The answers are those of tests/assets/traces/recorded.py. Half of a domain's requests train the draft, one draft for all
domains, and the other half are recorded. Lookup sees the requests in turn, its own text and the answers before, as in a
pod with ``draft.lookup: Speculator``. Each prompt is answered once, so that lookup never finds an answer to copy.

Writes one JSON file (tests/bench/speculation/recorded_rounds.py). Takes some minutes per domain on one core, most of
them for the answers, which are cached. Needs a CPU only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tests.assets.traces.proposals import propose
from tests.assets.traces.recorded import (
    CITIES,
    NAMES,
    domain_messages,
    json_messages,
    recorded,
)
from tests.assets.trained_draft import train_draft, untrained_draft
from tests.bench.bench_command import bench_parser
from tests.bench.speculation.recorded_rounds import RecordedRequest, RecordedRounds, matching_tokens
from tests.traffic.prompts import Domain

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_runtime.serving.speculation.lookup_index import LookupIndex
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap

DRAFT_STEPS = 7
LOOKUP_TOKENS = 11
LOOKUP_MAX_TOKENS = 1 << 18
DEFAULT_FILE = Path(__file__).with_name("recorded.json")


def prose_messages(count: int) -> list[str]:
    """``count`` messages that ask for prose, which neither lookup nor a small draft can guess."""
    pairs = itertools.product(CITIES, NAMES)
    return [f"Write the beginning of a story about {name} in {city}." for city, name in itertools.islice(pairs, count)]


def messages_by_domain(count: int) -> dict[str, list[str]]:
    """The first messages of every domain."""
    return {
        "json": json_messages(count),
        "docstrings": domain_messages(Domain.DOCSTRINGS, count),
        "sql": domain_messages(Domain.SQL, count),
        "prose": prose_messages(count),
    }


def record_rounds(
    domain: str,
    traces: Sequence[RequestTrace],
    draft: DraftModel,
    vocabulary: VocabularyMap,
    index: LookupIndex,
) -> Iterator[RecordedRequest]:
    """The rounds of each trace. ``index`` keeps what it saw for the next requests."""
    spec = DraftSpec(steps=DRAFT_STEPS)
    for number, trace in enumerate(traces):
        if trace.answer_tokens < 2:  # no round has anything to guess
            continue
        tokens, first = trace.tokens.tolist(), trace.prompt_length
        rid = f"{domain}-{number}"
        index.begin(rid, tokens[:first])
        match, length, right, drafted = [], [], [], []
        for place, chain in enumerate(propose(draft, vocabulary, trace, spec)):
            index.extend(rid, [tokens[first + place]])
            following = tokens[first + place + 1 :]
            proposal = index.propose(rid, LOOKUP_TOKENS)
            match.append(proposal.match_length)
            length.append(len(proposal.tokens))
            right.append(matching_tokens(proposal.tokens, following))
            drafted.append(matching_tokens(chain.tokens[1:], following))
        index.extend(rid, tokens[-1:])  # a later request may be proposed the end of this answer
        index.end(rid)
        yield RecordedRequest(domain, first, tuple(match), tuple(length), tuple(right), tuple(drafted))


def main() -> None:
    parser = bench_parser("tests.bench.speculation.record", __doc__)
    parser.add_argument("--requests", type=int, default=80, help="requests per domain, of which half are recorded")
    parser.add_argument("--file", type=Path, default=DEFAULT_FILE, help="the file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    traces = {domain: recorded(domain, m) for domain, m in messages_by_domain(options.requests).items()}
    half = options.requests // 2
    draft, vocabulary = untrained_draft()
    train_draft(draft, vocabulary, [t for turn in zip(*(t[:half] for t in traces.values()), strict=True) for t in turn])
    index = LookupIndex(LookupScope.SPECULATOR, LOOKUP_MAX_TOKENS)
    requests = [r for domain, t in traces.items() for r in record_rounds(domain, t[half:], draft, vocabulary, index)]
    trained = sum(t.answer_tokens for each in traces.values() for t in each[:half])
    RecordedRounds(
        f"SmolLM2-135M, greedy, {options.requests - half} requests per domain; draft after {trained} answer tokens of "
        f"all domains, {DRAFT_STEPS} steps; lookup of {LOOKUP_TOKENS} tokens in own text and earlier answers",
        tuple(requests),
    ).write(options.file)
    print(f"{options.file}: {len(requests)} requests, {options.file.stat().st_size} bytes")


if __name__ == "__main__":
    main()

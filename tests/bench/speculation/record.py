"""Records rounds: what lookup and a draft would get right after every token of SmolLM2's answers.

The answers are those of tests/assets/traces/recorded.py. Half of a domain's requests train the draft, one draft for all
domains, and the other half are recorded. Lookup sees the requests in turn, its own text and the answers before, as in a
pod with ``draft.lookup: Speculator``. Each prompt is answered once, so that lookup never finds an answer to copy.

``--draft FOLDER --traffic DOMAIN`` records the rounds of a draft that tests.bench.served trained, such as
``OUT/drafts-docstrings-…/1``. The recorded requests are the last ones of the domain's traffic
(tests/bench/served/messages.py). None of them is reserved for measurements, and the draft has learned from none.

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
from tests.assets.trained_draft import load_small_target, train_draft, untrained_draft
from tests.bench.bench_command import bench_parser
from tests.bench.served.live_training import TrainingRecord
from tests.bench.served.messages import DOMAINS, traffic
from tests.bench.speculation.recorded_rounds import RECORDING, RecordedRequest, RecordedRounds, matching_tokens
from tests.traffic.prompts import Domain

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_runtime.serving.speculation.lookup_index import LookupIndex
from aurora_runtime.traces import RequestTrace
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.model.draft import DraftModel
from aurora_runtime.training.model.vocabulary_map import VocabularyMap

DRAFT_STEPS = 7
LOOKUP_TOKENS = 11
LOOKUP_MAX_TOKENS = 1 << 18
LIMITS = f"{DRAFT_STEPS} steps; lookup of {LOOKUP_TOKENS} tokens in own text and earlier answers"


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


def record_domains(count: int) -> RecordedRounds:
    """The rounds of half of ``count`` requests of each domain, with a draft that the other half trained."""
    traces = {domain: recorded(domain, m) for domain, m in messages_by_domain(count).items()}
    half = count // 2
    draft, vocabulary = untrained_draft()
    train_draft(draft, vocabulary, [t for turn in zip(*(t[:half] for t in traces.values()), strict=True) for t in turn])
    index = LookupIndex(LookupScope.SPECULATOR, LOOKUP_MAX_TOKENS)
    requests = [r for domain, t in traces.items() for r in record_rounds(domain, t[half:], draft, vocabulary, index)]
    trained = sum(t.answer_tokens for each in traces.values() for t in each[:half])
    return RecordedRounds(
        f"SmolLM2-135M, greedy, {count - half} requests per domain; draft after {trained} answer tokens of all "
        f"domains, {LIMITS}",
        tuple(requests),
    )


def unlearned_traffic(domain: str, count: int, learned: int) -> list[str]:
    """The last ``count`` messages of a domain's traffic.

    Raises :class:`ValueError` when they contain one of the ``learned`` first messages, which a draft has learned from.
    """
    messages = traffic(domain)
    if count > (left := max(0, len(messages) - learned)):
        raise ValueError(f"the draft learned from {learned} of {len(messages)} requests, so {left} can be recorded")
    return messages[len(messages) - count :]


def record_traffic(domain: str, count: int, folder: Path) -> RecordedRounds:
    """The rounds of the last ``count`` requests of a domain's traffic, with the trained draft in ``folder``.

    Raises:
        FileNotFoundError: the folder has no draft of tests.bench.served.
        ValueError: the draft has learned from some of these requests.
    """
    training = TrainingRecord.read(folder)
    messages = unlearned_traffic(domain, count, training.requests)
    target = load_small_target()
    draft, ids = checkpoint.load(folder, target.embedding)
    vocabulary = VocabularyMap.of(ids, target.identity.vocab_size)
    index = LookupIndex(LookupScope.SPECULATOR, LOOKUP_MAX_TOKENS)
    traces = recorded(f"traffic-{domain}", messages)
    return RecordedRounds(
        f"SmolLM2-135M, greedy, the last {count} requests of the {domain} traffic; draft after {training.tokens} "
        f"answer tokens of {training.requests} earlier requests, {LIMITS}",
        tuple(record_rounds(domain, traces, draft, vocabulary, index)),
    )


def main() -> None:
    parser = bench_parser("tests.bench.speculation.record", __doc__)
    parser.add_argument(
        "--requests", type=int, default=80, help="requests per domain, of which half are recorded; with --draft all are"
    )
    parser.add_argument("--traffic", choices=DOMAINS, help="with --draft: the domain whose traffic is recorded")
    parser.add_argument(
        "--draft", type=Path, metavar="FOLDER", help="record with this draft of tests.bench.served --out"
    )
    parser.add_argument("--file", type=Path, default=RECORDING, help="the file to write")
    options = parser.parse_args()
    if (options.draft is None) != (options.traffic is None):
        parser.error("--draft and --traffic belong together")
    torch.set_num_threads(1)
    if options.draft is None:
        rounds = record_domains(options.requests)
    else:
        try:
            rounds = record_traffic(options.traffic, options.requests, options.draft)
        except (FileNotFoundError, ValueError) as error:
            parser.error(f"{options.draft}: {error}")
    rounds.write(options.file)
    print(f"{options.file}: {len(rounds.requests)} requests, {options.file.stat().st_size} bytes")


if __name__ == "__main__":
    main()

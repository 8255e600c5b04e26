"""How far were the controller's estimates from what its rounds took and made?

Reads the files that tests.bench.served --log-rounds wrote. Prints, per server, number of running requests and arm: the
rounds whose time can be compared, how many of them explored, and their share of the time of all such rounds with as
many requests. Then come the milliseconds and the tokens of a round that were expected and that came (means), and the
tokens per second, also over those expected. Rounds in which the draft first catches up are counted apart.

The expected milliseconds contain a share of the draft's catch-up, which the rounds before and after it cause or use. So
only all rounds with the draft together compare with what was expected of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from tests.bench.bench_command import bench_parser
from tests.bench.markdown import markdown_table
from tests.bench.served.round_log import Estimates, LoggedRound, LoggedRounds

HEAD = (
    "server",
    "requests",
    "arm",
    "rounds",
    "exploring",
    "time",
    "ms expected",
    "ms",
    "tokens expected",
    "tokens",
    "tokens/s",
    "over expected",
)
CATCHES_UP = ", catches up"


def rows(server: str, logged: LoggedRounds) -> Iterator[list[object]]:
    """The rows of a server, under :data:`HEAD`."""
    groups = dict[tuple[int, int, bool], list[tuple[LoggedRound, Estimates, float]]]()
    seconds = defaultdict[int, float](float)
    for one in logged.rounds:
        if one.milliseconds is not None and one.estimates is not None:
            size = len(one.requests)
            groups.setdefault((size, logged.arms.index(one.arm), one.catches_up), []).append(
                (one, one.estimates, one.milliseconds)
            )
            seconds[size] += one.milliseconds / 1000
    for (size, arm, late), group in sorted(groups.items()):
        expected, took = fmean(e.milliseconds[arm] for _, e, _ in group), fmean(ms for *_, ms in group)
        tokens, made = fmean(e.tokens[arm] for _, e, _ in group), fmean(one.tokens for one, *_ in group)
        exploring = sum(one.explores for one, *_ in group)
        time = len(group) * took / 1000 / seconds[size]
        figures = (f"{time:.0%}", f"{expected:.1f}", f"{took:.1f}", f"{tokens:.2f}", f"{made:.2f}")
        speeds = (f"{1000 * made / took:.0f}", f"{made / took / (tokens / expected):.3f}")
        yield [server, size, logged.arms[arm] + CATCHES_UP * late, len(group), exploring, *figures, *speeds]


def main() -> None:
    parser = bench_parser("tests.bench.served.round_log_report", __doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a file of tests.bench.served --log-rounds")
    options = parser.parse_args()
    print(markdown_table(HEAD, [row for file in options.files for row in rows(file.stem, LoggedRounds.read(file))]))


if __name__ == "__main__":
    main()

"""How far were the controller's estimates from what its rounds took and made?

Reads the files that tests.bench.served --log-rounds wrote. Prints, per server, number of running requests and arm: the
rounds, how many of them explored, the milliseconds and the tokens that were expected and that came (means over the
rounds whose time can be compared), and the ratio of both speeds. The expected milliseconds of a round contain a share
of the draft's catch-up, which the rounds before and after it cause or use. So only means over many rounds compare.
"""

from __future__ import annotations

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
    "ms expected",
    "ms",
    "tokens expected",
    "tokens",
    "speed / expected",
)


def rows(server: str, logged: LoggedRounds) -> Iterator[list[object]]:
    """The rows of a server, under :data:`HEAD`."""
    groups = dict[tuple[int, int], list[tuple[LoggedRound, Estimates, float]]]()
    for one in logged.rounds:
        if one.milliseconds is not None and one.estimates is not None:
            key = (len(one.requests), logged.arms.index(one.arm))
            groups.setdefault(key, []).append((one, one.estimates, one.milliseconds))
    for (size, arm), group in sorted(groups.items()):
        expected, took = fmean(e.milliseconds[arm] for _, e, _ in group), fmean(ms for *_, ms in group)
        tokens, made = fmean(e.tokens[arm] for _, e, _ in group), fmean(one.tokens for one, *_ in group)
        exploring = sum(one.explores for one, *_ in group)
        figures = (f"{expected:.1f}", f"{took:.1f}", f"{tokens:.2f}", f"{made:.2f}")
        yield [
            server,
            size,
            logged.arms[arm],
            len(group),
            exploring,
            *figures,
            f"{made / took / (tokens / expected):.3f}",
        ]


def main() -> None:
    parser = bench_parser("tests.bench.served.round_log_report", __doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a file of tests.bench.served --log-rounds")
    options = parser.parse_args()
    print(markdown_table(HEAD, [row for file in options.files for row in rows(file.stem, LoggedRounds.read(file))]))


if __name__ == "__main__":
    main()

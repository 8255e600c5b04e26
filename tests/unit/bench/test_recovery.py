"""The windows after an event hold the batches that began in them, paired by episode."""

from __future__ import annotations

import pytest

from tests.bench.served.recovery import EVENTS, PairedBatch, report, window_ratio, windows


def batch(event: str, episode: int, rounds_before: float, ratio: float) -> PairedBatch:
    """The pod is ``ratio`` times as fast as off."""
    return PairedBatch(event, episode, rounds_before, 1, 24, 1 / ratio, 24, 1.0)


def test_a_batch_counts_in_the_window_in_which_it_began() -> None:
    batches = [
        batch("shift", episode, at, ratio) for episode in range(3) for at, ratio in ((0, 0.5), (49, 0.5), (50, 1.0))
    ]
    first, second, third = (window_ratio(batches, "shift", window, 1) for window in windows()[:3])
    assert first is not None
    assert first.estimate == pytest.approx(0.5)
    assert second is not None
    assert second.estimate == pytest.approx(1.0)
    assert third is None


def test_each_event_and_window_has_a_row() -> None:
    batches = [batch("worse draft", episode, 0, 2.0) for episode in range(3)]
    lines = report(batches, 1).splitlines()
    assert len(lines) == 2 + len(EVENTS) * len(windows())
    assert "| worse draft | 0 to 50 | 2.00x [2.00, 2.00] |" in lines
    assert "| shift | 0 to 50 | not measured |" in lines

"""Which share of the conversations an engine traces, so that its traces keep to a budget of tokens a minute.

The allowance is the tokens that may be traced now. It fills at the budget's pace, and each traced token takes one from
it. The share of conversations falls exponentially with the allowance, so it settles where as many tokens are traced as
the budget gives, however busy the engine is. A request changes the share by little where it is small beside the
allowance. Then the next turn of a traced conversation is most likely traced too.

Invariant: no trace begins while the allowance is used up. Requests that run may overdraw it, and what they take is
missing later.
"""

from __future__ import annotations

from typing import Final

SAVED_MINUTES: Final = 10.0
"""Most minutes of the budget that an idle engine saves up. A new engine begins with so many."""
LEAST_SHARE: Final = 1e-3
"""The share that is traced when the allowance is nearly used up."""


class TraceAllowance:
    """The allowance of one engine. One thread calls its methods, and any thread reads ``share``.

    Args:
        tokens_per_minute: the budget.
    """

    def __init__(self, tokens_per_minute: int) -> None:
        self._budget = tokens_per_minute
        self._tokens = self._limit
        self.share = self._share()
        """Share of the conversations to trace, from 0 to 1."""

    @property
    def _limit(self) -> float:
        return SAVED_MINUTES * self._budget

    def order(self, tokens_per_minute: int) -> None:
        """Change the budget. What was saved stays, within the new limit. A first budget begins with all of it."""
        begins = not self._budget
        self._budget = tokens_per_minute
        self._tokens = self._limit if begins else min(self._limit, self._tokens)
        self.share = self._share()

    def pass_time(self, seconds: float) -> None:
        """Let the allowance fill for ``seconds``."""
        self._tokens = min(self._limit, self._tokens + self._budget * seconds / 60)
        self.share = self._share()

    def spend(self, tokens: int) -> None:
        """Take traced ``tokens`` from the allowance, which they may overdraw."""
        self._tokens -= tokens
        self.share = self._share()

    def _share(self) -> float:
        if self._tokens <= 0:
            return 0.0
        return float(LEAST_SHARE ** (1 - self._tokens / self._limit))

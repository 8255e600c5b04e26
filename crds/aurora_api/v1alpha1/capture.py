"""``spec.capture``: traces of live requests."""

from __future__ import annotations

from pydantic import Field

from aurora_api.base import Model

FIRST_DRAFT_FACTOR = 10
"""How many times the budget is traced while version 0 is active."""


class CaptureSpec(Model):
    """Traces of live requests. A trace holds token ids, which are user data.

    A request can refuse to be traced, or name a tag whose traces can be erased (docs/how-to/erasing-data.md).
    """

    tokens_per_minute: int = Field(
        default=20_000,
        ge=0,
        le=1_000_000_000,
        description="About how many tokens are traced in a minute, prompts included, by all pods together. Above it,"
        f" only a share of the conversations is traced. While version 0 is active, {FIRST_DRAFT_FACTOR} times as many"
        " are traced, so that a first draft comes soon. 0 traces nothing. A change restarts no pod.",
    )

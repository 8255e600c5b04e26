"""The answers with which the tests of this folder compare those of other engines."""

from __future__ import annotations

import pytest

from tests.integration.engine import plain_answers
from tests.integration.engine.plain_answers import PlainAnswers


@pytest.fixture(scope="session")
def plain() -> PlainAnswers:
    """The server has ended before another starts, because memory and cores are few."""
    return plain_answers.plain_answers()

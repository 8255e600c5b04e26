"""SGLang's keys are hidden wherever it shows its arguments."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from aurora_runtime.serving import protection


@pytest.fixture
def own_records() -> Iterator[None]:
    former = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(former)


def test_keys_are_hidden_wherever_sglang_shows_its_arguments() -> None:
    shown = protection.after_redaction(
        {
            "admin_api_key": "k1",
            "api_key": None,
            "nested": {"api_key": "k2"},
            "launch_command": "x --admin-api-key k1 y",
        }
    )
    assert shown == {
        "admin_api_key": "<redacted>",
        "api_key": None,
        "nested": {"api_key": "<redacted>"},
        "launch_command": "x --admin-api-key <redacted> y",
    }
    assert protection.after_redaction("--api-key=k2 --port 1") == "--api-key=<redacted> --port 1"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Hit invalid json_schema: key_string='{\n secret', e=Error('secret')", "json_schema: key_string=<redacted>"),
        ("Hit invalid regex schema: regex='secret\n', e=1", "regex=<redacted>"),
        ("Hit invalid grammar: serialized_grammar='secret'", "serialized_grammar=<redacted>"),
        ("Grammar compilation raised an exception: secret, ('json', 'secret')", "raised an exception: <redacted>"),
        ("timed out: req.grammar_key=('json', 'secret'), self.rid='1'", "req.grammar_key=<redacted>"),
        ("req 1: invalid stop_regex 'secret' (e)", "invalid stop_regex <redacted>"),
        ("Failed to compile json grammar: line 1\nsecret", "Failed to compile json grammar: <redacted>"),
        ("Grammar accept_token failed for req 1 with token 2: secret", "Grammar accept_token failed<redacted>"),
        ("Token not accepted during retokenization: 3\nKey string: secret", "Token not accepted<redacted>"),
    ],
)
@pytest.mark.usefixtures("own_records")
def test_the_log_shows_no_schema_of_a_client(caplog: pytest.LogCaptureFixture, message: str, shown: str) -> None:
    for _ in range(2):
        protection.hide_client_texts()
    log = logging.getLogger("sglang.srt.managers.schedule_batch")
    log.error(message)
    log.error("request rejected: %s", message)
    assert all(text.endswith(shown) for text in caplog.messages)
    assert "secret" not in caplog.text


def refuse(reason: str) -> None:
    raise ValueError(reason)


@pytest.mark.usefixtures("own_records")
def test_a_traceback_shows_no_schema_of_a_client(caplog: pytest.LogCaptureFixture) -> None:
    protection.hide_client_texts()
    try:
        refuse(f"Tokens not accepted: {2}\nKey string: {'se'}cret")
    except ValueError:
        logging.getLogger("sglang.srt.managers.scheduler").exception("a step failed")
    assert "Tokens not accepted<redacted>" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.usefixtures("own_records")
def test_arguments_that_do_not_fit_their_message_raise_nothing_and_are_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    protection.hide_client_texts()
    logging.getLogger("sglang.srt.managers.scheduler").error("took %d s", "secret")
    assert caplog.messages == ["took %d s"]


@pytest.mark.usefixtures("own_records")
def test_other_messages_are_shown_whole(caplog: pytest.LogCaptureFixture) -> None:
    protection.hide_client_texts()
    logging.getLogger("sglang.srt.managers.schedule_batch").error("out of %s", "memory")
    logging.getLogger("aurora").error("regex=%s", "ours")
    assert caplog.messages == ["out of memory", "regex=ours"]

"""SGLang's keys are hidden wherever it shows its arguments."""

from __future__ import annotations

import logging

import pytest

from aurora_runtime.serving.protection import log_redaction


def test_keys_are_hidden_wherever_sglang_shows_its_arguments() -> None:
    shown = log_redaction.after_secrets(
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
    assert log_redaction.after_command_line("--api-key=k2 --port 1") == "--api-key=<redacted> --port 1"


@pytest.mark.parametrize(
    ("module", "message", "args", "shown"),
    [
        (
            "constrained.xgrammar_backend",
            "Hit invalid json_schema: key_string='{\\n secret', e=Error('secret')",
            (),
            "Hit invalid json_schema: key_string=<redacted>",
        ),
        ("constrained.outlines_backend", "Hit invalid regex schema: regex='secret\n', e=1", (), "regex=<redacted>"),
        ("constrained.llguidance_backend", "Hit invalid grammar: serialized_grammar='secret'", (), "=<redacted>"),
        (
            "constrained.grammar_manager",
            "Grammar compilation raised an exception: secret, grammar_key=('json', 'secret')",
            (),
            "raised an exception: <redacted>",
        ),
        (
            "managers.schedule_batch",
            "Grammar preprocessing timed out: req.grammar_key=('json', 'secret'), self.rid='1'",
            (),
            "req.grammar_key=<redacted>",
        ),
        ("managers.schedule_batch", "req %s: invalid stop_regex %r (%s)", ("1", "secret", "e"), "regex <redacted>"),
        (
            "entrypoints.http_server",
            "[http_server] Error: Failed to compile json grammar: line 1\nsecret",
            (),
            "Failed to compile json grammar: <redacted>",
        ),
    ],
)
def test_the_log_shows_no_schema_of_a_client(
    caplog: pytest.LogCaptureFixture, module: str, message: str, args: tuple[str, ...], shown: str
) -> None:
    for _ in range(2):
        log_redaction.hide_client_texts()
    logging.getLogger(f"sglang.srt.{module}").error(message, *args)
    assert caplog.messages[0].endswith(shown)
    assert "secret" not in caplog.text


def test_other_messages_of_these_loggers_are_shown_whole(caplog: pytest.LogCaptureFixture) -> None:
    log_redaction.hide_client_texts()
    logging.getLogger("sglang.srt.managers.schedule_batch").error("out of %s", "memory")
    assert caplog.messages == ["out of memory"]

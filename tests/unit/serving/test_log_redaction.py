"""SGLang's keys are hidden wherever it shows its arguments."""

from __future__ import annotations

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

"""The program that prints a tag's hash: the hash that the engine stores."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from aurora_protocol.pod_settings import TRAFFIC_SECRET
from aurora_runtime.request_privacy import tag_hash, tag_key, tag_number
from aurora_runtime.serving import tag_hash as program


@pytest.mark.parametrize("given", ["tenant-7", "tenant-7\n"])
def test_the_hash_of_the_tag_on_standard_input_is_that_of_the_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    (tmp_path / TRAFFIC_SECRET).write_text("secret\n")
    monkeypatch.setattr(sys, "argv", ["tag_hash", "--keys", str(tmp_path)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    program.main()
    assert capsys.readouterr().out == tag_hash(tag_number(tag_key("secret"), "tenant-7")) + "\n"


def test_without_a_tag_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tag_hash", "--keys", str(tmp_path)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit):
        program.main()
    assert "give the tag on standard input" in capsys.readouterr().err

"""The page of SGLang's versions has a row for each supported version, and names the locked one."""

from __future__ import annotations

import re

from aurora_protocol.sglang_flags import known_options
from aurora_runtime.sglang_version import SUPPORTED_SGLANG
from tests.unit.docs.markdown import page

PAGE = page("docs/reference/sglang-versions.md")


def test_every_supported_version_has_a_row() -> None:
    versions = [row[0] for row in PAGE.table_rows if re.fullmatch(r"[0-9.]+", row[0])]
    assert versions == list(SUPPORTED_SGLANG)


def test_the_locked_version_is_named() -> None:
    assert known_options().sglang in SUPPORTED_SGLANG
    assert f"the locked version, {known_options().sglang}." in PAGE.path.read_text()

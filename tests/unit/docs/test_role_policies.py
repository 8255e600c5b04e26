"""The policies for the store grant what the table of the store's layout says, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.docs.markdown import ROOT, page

BUCKET = "arn:aws:s3:::my-aurora-bucket"
OF_ROOT = "aurora/default/chat-????????/"
"""Each `?` is one character, so the last part of a root is matched exactly. A `*` would match slashes too."""
ROLES = ("operator", "serving", "training", "validation")
KINDS = {"s3:GetObject": "read", "s3:PutObject": "write", "s3:DeleteObject": "delete"}


def statements(role: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / f"docs/samples/iam/{role}.json").read_text())["Statement"]
    return found


def texts(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def granted(role: str, action: str) -> set[str]:
    """The keys below the root that ``role`` may use ``action`` on."""
    resources = (r for s in statements(role) if s["Action"] == action for r in texts(s["Resource"]))
    return {resource.removeprefix(f"{BUCKET}/{OF_ROOT}") for resource in resources}


def documented(role: str, kind: str) -> set[str]:
    """The keys below the root that the table gives ``role`` the right ``kind`` on."""
    rows = page("docs/reference/store-layout.md").table_rows
    table = [row for row in rows if len(row) == 1 + len(ROLES) and re.fullmatch(r"`[a-z/.]+`", row[0])]
    assert len(table) == 12
    keys = ((row[0].strip("`"), row[1 + ROLES.index(role)].split(", ")) for row in table)
    return {key + ("*" if key.endswith("/") else "") for key, rights in keys if kind in rights}


def whole_trainer(keys: set[str]) -> set[str]:
    """``keys`` with both entries of the trainer's folder in place of the folder."""
    return (keys - {"trainer/*"}) | ({"trainer/status.json", "trainer/state/*"} if "trainer/*" in keys else set())


@pytest.mark.parametrize("role", ROLES)
def test_a_policy_grants_what_the_table_says(role: str) -> None:
    for action, kind in KINDS.items():
        assert whole_trainer(granted(role, action)) == documented(role, kind), (action, kind)


def every_key(role: str) -> Iterator[str]:
    for statement in statements(role):
        if statement["Action"] == "s3:ListBucket":
            assert statement["Resource"] == BUCKET
            yield from texts(statement["Condition"]["StringLike"]["s3:prefix"])
        else:
            yield from (resource.removeprefix(f"{BUCKET}/") for resource in texts(statement["Resource"]))


@pytest.mark.parametrize("role", ROLES)
def test_no_policy_reaches_beyond_the_root_and_each_role_lists_what_it_reads(role: str) -> None:
    assert all(key.startswith(OF_ROOT) for key in every_key(role))
    assert all("*" not in key[:-1] for key in every_key(role))
    assert {statement["Effect"] for statement in statements(role)} == {"Allow"}
    (listing,) = (s for s in statements(role) if s["Action"] == "s3:ListBucket")
    listed = {key.removeprefix(OF_ROOT) for key in texts(listing["Condition"]["StringLike"]["s3:prefix"])}
    read = granted(role, "s3:GetObject") - {"probe/*"}
    assert listed == ({"*"} if role == "operator" else read)

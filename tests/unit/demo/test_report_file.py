"""The demo names the report's path, or says in one line why there is no report."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cluster.access import Tools
from tests.demo.report_file import write_report

STORE = "http://10.99.128.7:8333"
FAKE = """
import os, pathlib, sys
words = sys.argv[1:]
pathlib.Path(words[words.index("-o") + 1]).write_text(os.environ["KUBECONFIG"] + " " + " ".join(words[:-2]))
"""


def tools(context: str | None = None) -> Tools:
    return Tools(Path("kubectl"), Path("helm"), Path("/demo/kubeconfig"), context=context)


def test_the_command_gets_the_demos_cluster_and_the_report_is_named(tmp_path: Path) -> None:
    file = tmp_path / "build" / "report.html"
    line = write_report("chat", "default", file, tools("kind-aurora"), STORE, cli=(sys.executable, "-c", FAKE))
    assert line == f"report: {file}"
    assert file.read_text() == (
        "/demo/kubeconfig report chat --namespace default --context kind-aurora --endpoint http://10.99.128.7:8333 "
        "--use-secret"
    )


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ("import sys; sys.exit('error: chat has no evidence yet')", "exit status 1: error: chat has no evidence yet"),
        ("import sys; sys.exit(2)", "exit status 2"),
        ("pass", "exit status 0"),
    ],
)
def test_a_command_without_a_report_is_told_in_a_line(program: str, line: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("the report of an earlier demo")
    assert (
        write_report("chat", "default", file, tools(), STORE, cli=(sys.executable, "-c", program))
        == f"no report: {line}"
    )
    assert not file.exists(), "a report of an earlier demo would be taken for this one's"

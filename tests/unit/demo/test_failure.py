"""A failure says which stage failed, what happened, which log to read and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster.command import CommandError
from tests.demo.failure import failure_lines, interruption_lines, save_cluster_logs
from tests.demo.jobs import JobFailedError, JobState, Outcome
from tests.demo.stages import LOGS, ROOT, STAGES, stage


def test_a_failed_program_is_explained_by_the_end_of_its_own_log(tmp_path: Path) -> None:
    log = tmp_path / "kubernetes.log"
    log.write_text("building\n\ngo: no space left on device\nerror: go build exited 1: see its output above\n")
    error = JobFailedError(Outcome("kubernetes", log, JobState.FAILED, exit_status=1), [])
    assert failure_lines("kubernetes", error) == [
        "failed: Kubernetes from source",
        "  what happened: exit status 1",
        "                 building",
        "                 go: no space left on device",
        "                 error: go build exited 1: see its output above",
        "  log: build/demo/kubernetes.log",
        "  do this: run `.venv/bin/python -m tests.cluster build`: it goes on from the packages compiled so far",
    ]


def test_the_log_of_the_program_that_failed_is_named() -> None:
    outcome = Outcome("packages", LOGS / "start" / "packages.log", JobState.FAILED, exit_status=2)
    assert "  log: build/demo/start/packages.log" in failure_lines("packages", JobFailedError(outcome, []))


@pytest.mark.parametrize("key", [stage.key for stage in STAGES])
def test_every_stage_has_a_log_and_a_command(key: str) -> None:
    error = TimeoutError("chat: timed out\n" * 50 + "\x1b[2JConditions: " + "x" * 500)
    lines = failure_lines(key, error)
    assert any(line.startswith("  log: ") for line in lines)
    assert any("make " in line or "python -m" in line for line in lines)
    assert all(len(line) <= 120 and line.isprintable() for line in lines)
    assert len(lines) <= 20


@pytest.mark.parametrize("key", [stage.key for stage in STAGES])
def test_the_commands_and_logs_of_the_advice_exist(key: str) -> None:
    modules = re.findall(r"python -m ([a-z_.]+)", stage(key).advice)
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    targets = re.findall(r"make ([a-z]+)`", stage(key).advice)
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_everything_that_a_machine_lacks_is_named() -> None:
    missing = [f"install package-{number} (apt-get install package-{number})" for number in range(5)]
    error = RuntimeError(f"this machine cannot run the local cluster yet: {'; '.join(missing)}")
    text = " ".join(" ".join(failure_lines("prerequisites", error)).split())
    assert all(name in text for name in missing)


def test_an_error_without_a_text_is_named_by_its_type() -> None:
    assert "  what happened: AssertionError" in failure_lines("results", AssertionError())


def test_an_interruption_names_what_was_going_on() -> None:
    assert interruption_lines(["kubernetes", "model"])[0] == (
        "stopped in: Kubernetes from source, model SmolLM2-135M-Instruct"
    )
    assert interruption_lines([])[0] == "stopped in: between two stages"


def test_the_clusters_logs_are_saved_even_if_parts_of_it_do_not_answer(tmp_path: Path) -> None:
    def kubectl(*arguments: str, timeout_seconds: float) -> str:
        if "jsonpath" in arguments[-1]:
            return "default chat-0\naurora-system aurora-operator\n"
        if "chat-0" in arguments:
            raise CommandError(arguments, 1, "", "container is waiting to start")
        return f"answer to {arguments[0]}"

    file = tmp_path / "demo" / "cluster.log"
    save_cluster_logs(kubectl, file)
    written = file.read_text()
    assert "$ kubectl get pods -A -o wide\nanswer to get" in written
    assert "$ kubectl logs -n aurora-system aurora-operator" in written
    assert "container is waiting to start" in written

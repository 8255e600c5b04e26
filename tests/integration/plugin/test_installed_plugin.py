"""The one file that `make plugin` built does what the Python program does."""

from __future__ import annotations

import json
import re
from typing import Final

import pytest

from aurora_cli.main import COMMANDS
from tests.assets.s3 import S3
from tests.integration.plugin.conftest import NAME, Done, Machine
from tests.rig.api_server import ApiServer, free_ports

CONFIGURATION: Final = {"KUBECONFIG": "kubeconfig"}
ROLE: Final = """\
[default]
region = us-east-1
role_arn = arn:aws:iam::000000000000:role/reader
source_profile = keys
[profile keys]
aws_access_key_id = only-for-tests
aws_secret_access_key = only-for-tests
"""
"""Credentials that boto3 gets from the service sts."""


def error_of(done: Done) -> str:
    """The one line that a command that failed prints."""
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_help_lists_every_command(machine: Machine) -> None:
    done = machine.kubectl("aurora", "--help")
    assert done.returncode == 0, done.stderr
    for name in (*(command.__name__ for command in COMMANDS), "store", "draft"):
        assert re.search(rf"^\W*{name}\W", done.stdout, re.MULTILINE), name


def test_without_a_cluster_the_program_says_so_in_one_line(machine: Machine) -> None:
    assert "kubeconfig" in error_of(machine.kubectl("aurora", "status", env={"KUBECONFIG": "missing"}))


def test_an_api_server_that_does_not_answer_is_one_line(machine: Machine) -> None:
    (port,) = free_ports(1)
    cluster = {"name": "away", "cluster": {"server": f"https://127.0.0.1:{port}"}}
    context = {"name": "away", "context": {"cluster": "away", "user": "nobody"}}
    user = {"name": "nobody", "user": {}}
    away = {"current-context": "away", "clusters": [cluster], "contexts": [context], "users": [user]}
    (machine.home / "away").write_text(json.dumps(away))
    assert "127.0.0.1" in error_of(machine.kubectl("aurora", "status", env={"KUBECONFIG": "away"}))


@pytest.mark.usefixtures("server")
def test_status_and_doctor_are_shown(machine: Machine) -> None:
    """The doctor's table is a file beside the code."""
    shown, found = (machine.kubectl("aurora", *words, NAME, env=CONFIGURATION) for words in (["status"], ["doctor"]))
    assert shown.stdout.startswith(NAME), shown.stderr
    assert found.returncode == 0, found.stderr


@pytest.mark.usefixtures("server")
def test_a_report_names_the_extra_that_it_needs(machine: Machine) -> None:
    """The one file does not hold what draws: it would be twice as large, and slower at every start."""
    assert "extra report" in error_of(machine.kubectl("aurora", "report", NAME, "-o", "x.html", env=CONFIGURATION))


def test_evidence_of_the_store_is_shown(machine: Machine, store: S3) -> None:
    command = ("aurora", "evidence", NAME, "1", f"--endpoint={store.endpoint}")
    done = machine.kubectl(*command, env=CONFIGURATION | store.environment())
    assert done.returncode == 0, done.stderr
    assert "candidate/off" in done.stdout


@pytest.mark.usefixtures("server")
def test_credentials_of_a_role_are_asked_of_sts(machine: Machine) -> None:
    """Nothing listens where STS should be. A file without the service's description would fail in another way."""
    (machine.home / "aws").write_text(ROLE)
    (port,) = free_ports(1)
    there = {"AWS_CONFIG_FILE": "aws", "AWS_ENDPOINT_URL_STS": f"http://127.0.0.1:{port}"}
    done = machine.kubectl("aurora", "store", "verify", NAME, env=CONFIGURATION | there)
    assert "EndpointConnectionError" in error_of(done)


@pytest.mark.parametrize("path", [None, "/opt/of-the-user"])
def test_programs_that_the_plugin_starts_have_the_users_libraries(
    machine: Machine, server: ApiServer, path: str | None
) -> None:
    """A credential helper of a kubeconfig would not start with the libraries of the one file."""
    configuration = json.loads(server.kubeconfig.read_text())
    (user,) = configuration["users"]
    seen, helper = machine.home / "seen", machine.home / "bin/credential-helper"
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": user["user"]["token"]},
    }
    helper.write_text(f"#!/bin/sh\nenv > {seen}\necho '{json.dumps(credential)}'\n")
    helper.chmod(0o755)
    user["user"] = {
        "exec": {
            "apiVersion": credential["apiVersion"],
            "command": str(helper),
            "interactiveMode": "Never",
            "provideClusterInfo": False,
        }
    }
    (machine.home / "with-helper").write_text(json.dumps(configuration))
    variables = {"KUBECONFIG": "with-helper"} | ({} if path is None else {"LD_LIBRARY_PATH": path})
    done = machine.kubectl("aurora", "status", NAME, env=variables)
    assert done.returncode == 0, done.stderr
    environment = dict(line.split("=", 1) for line in seen.read_text().splitlines() if "=" in line)
    assert environment.get("LD_LIBRARY_PATH") == path

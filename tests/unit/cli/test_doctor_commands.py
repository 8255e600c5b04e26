"""The commands that the doctor prints: those that destroy something come last, and say when to run them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from types import ModuleType
from typing import Any, Final

import pytest

from aurora_api.v1alpha1.conditions import ConditionStatus
from aurora_api.v1alpha1.serving import OperatorUpgrade
from aurora_cli.doctor import operator_rules, rollout_rules, serving_rules, store_rules, training_rules
from aurora_cli.doctor.diagnosis import diagnose, is_well
from aurora_cli.doctor.finding import Finding, Remedy, Severity
from aurora_cli.speculator import Speculator
from aurora_operator.plan.data_deletion import IN_PROGRESS, MAX_POD_WAIT_SECONDS, failure_text
from tests.unit.cli.snapshots import snapshot, with_condition
from tests.unit.docs.test_chart_values import DESCRIBED
from tests.unit.operator import worlds
from tests.unit.operator.worlds import NOW

RULES: Final = (operator_rules, rollout_rules, serving_rules, store_rules, training_rules)
DECIDES: Final = re.compile(
    r'\b(delete|rm|start-over|promote|abort|rollout restart)\b|deletionPolicy|operatorUpgrade|"suspend":'
)
"""In a command that destroys something, or that is right only under a condition."""


def remedies(module: ModuleType) -> Iterator[Remedy]:
    """All remedies of a module's rules."""
    for value in vars(module).values():
        for one in value.values() if isinstance(value, Mapping) else (value,):
            if isinstance(one, Remedy):
                yield one


REMEDIES: Final = {one.title: one for module in RULES for one in remedies(module)}


def test_many_commands_decide_something() -> None:
    assert len([one for one in REMEDIES.values() if any(map(DECIDES.search, one.commands))]) > 10


@pytest.mark.parametrize("title", REMEDIES)
def test_a_command_that_decides_something_comes_after_one_that_reads_and_says_when_to_run_it(title: str) -> None:
    commands = REMEDIES[title].commands
    assert not commands or not DECIDES.search(commands[0]), "read first"
    for command in commands:
        comment = command.partition("   # only ")[2]
        assert not DECIDES.search(command) or comment, command
        assert re.fullmatch(r"[\w ]*", comment), "a shell that reads no comments must see plain words"


CHART_VALUE: Final = re.compile(r"([\w.]+) of the chart|the chart's ([\w.]+)|^helm .*# ([\w.]+)")
"""A value of the chart in a text or a command of a remedy."""


def chart_values(remedy: Remedy) -> Iterator[str]:
    for text in (remedy.title, remedy.advice, *remedy.commands):
        for names in CHART_VALUE.findall(text):
            yield from filter(None, names)


def test_each_value_of_the_chart_that_is_named_is_in_its_schema() -> None:
    named = {value for remedy in REMEDIES.values() for value in chart_values(remedy)}
    assert {"images.speculatorPullSecrets", "secretNames", "stores.internalHosts", "watchNamespaces"} <= named
    assert named <= DESCRIBED.keys()


def test_no_command_assumes_the_name_of_a_helm_release() -> None:
    helm = [c for remedy in REMEDIES.values() for c in remedy.commands if c.startswith("helm ")]
    assert all("RELEASE" in command or command.startswith("helm list ") for command in helm)
    assert any("RELEASE" in command for command in helm)


def deletion(message: str, minutes: float) -> Finding:
    """The findings about a speculator whose deletion began so long ago."""
    one = snapshot(with_condition("Ready", ConditionStatus.FALSE, "Deleting", message))
    since = (NOW - timedelta(minutes=minutes)).isoformat()
    deleted = {**one.speculator.raw, "metadata": {**one.speculator.metadata, "deletionTimestamp": since}}
    (finding,) = diagnose(replace(one, speculator=Speculator.of(deleted)))
    assert finding.evidence == f"Ready=False Deleting: {message}"
    return finding


@pytest.mark.parametrize("minutes", [0, MAX_POD_WAIT_SECONDS / 60 + 4])
def test_a_deletion_that_gets_on_is_noted_without_a_command(minutes: float) -> None:
    finding = deletion(IN_PROGRESS, minutes)
    assert is_well([finding])
    assert finding.commands == ()


def test_a_long_deletion_that_gets_on_does_not_offer_to_keep_the_data() -> None:
    finding = deletion(IN_PROGRESS, 16)
    assert finding.severity is Severity.WARNING
    assert finding.title == "the deletion of the speculator takes longer than usual"
    assert "kubectl logs -n aurora-system" in finding.commands[0]
    assert "Retain" not in " ".join((finding.advice, *finding.commands))


@pytest.mark.parametrize("minutes", [1, 16])
def test_a_deletion_that_does_not_get_on_says_what_keeping_the_data_means(minutes: float) -> None:
    finding = deletion(failure_text("the store gives no answer", "s3://bucket/root", "team", "chat"), minutes)
    assert finding.title == "the deletion of the speculator does not get on"
    assert finding.severity is Severity.WARNING
    assert "deletionPolicy" in finding.commands[-1]
    assert finding.commands[-1].endswith("# only if the stored data may stay")
    assert "traces of users" in finding.advice


@pytest.mark.parametrize(
    ("minutes", "title"),
    [
        (0, "the speculator is being deleted, and the operator deletes its stored data first"),
        (16, "the deletion of the speculator takes longer than usual"),
    ],
)
def test_a_deletion_that_no_operator_has_reported_is_found_by_its_time(minutes: float, title: str) -> None:
    one = snapshot()
    since = (NOW - timedelta(minutes=minutes)).isoformat(timespec="seconds")
    deleted = {**one.speculator.raw, "metadata": {**one.speculator.metadata, "deletionTimestamp": since}}
    (finding,) = diagnose(replace(one, speculator=Speculator.of(deleted)))
    assert finding.title == title
    assert finding.evidence == f"metadata.deletionTimestamp is {since}"


@pytest.mark.parametrize("reason", ["UpgradeFailed", "OrderStopped"])
def test_a_failed_upgrade_names_the_way_out_for_the_other_speculators(reason: str) -> None:
    (finding,) = diagnose(snapshot(with_condition("UpgradePending", ConditionStatus.TRUE, reason)))
    assert "serving.update.operatorUpgrade: WithSpec" in finding.advice
    assert "docs/how-to/upgrading.md" in finding.advice


def test_the_command_for_the_way_out_of_a_failed_upgrade_is_a_patch_of_the_spec() -> None:
    (finding,) = diagnose(snapshot(with_condition("UpgradePending", ConditionStatus.TRUE, "UpgradeFailed")))
    patch = shlex.split(finding.commands[-1], comments=True)[-1]
    patched = worlds.spec(**json.loads(patch)["spec"])
    assert patched.serving.update.operator_upgrade is OperatorUpgrade.WITH_SPEC


ROOT: Final = "aurora/team/chat-1a2b3c4d"


def aws_commands(reason: str, root: str | None = ROOT, **store: Any) -> list[str]:
    """The commands for the object store that are found with a reason of StorageReady."""
    status = with_condition("StorageReady", ConditionStatus.FALSE, reason, "the message")
    one = snapshot(status.model_copy(update={"store_root": root}), store={**worlds.MINIMAL["store"], **store})
    (finding,) = diagnose(one)
    return [command.partition("   # ")[0] for command in finding.commands if command.startswith("aws")]


def test_commands_for_the_store_name_its_endpoint_bucket_and_root() -> None:
    minio = "aws --endpoint-url http://minio.storage:9000 s3"
    place = f"s3://bucket/{ROOT}"
    assert aws_commands("RecordsLost", endpoint="http://minio.storage:9000") == [
        f"{minio} cp --recursive BACKUP {place}"
    ]
    assert aws_commands("InvalidRecord", endpoint="http://minio.storage:9000") == [
        f"{minio} cp {place}/KEY -",
        f"{minio} rm {place}/KEY",
    ]


def test_commands_for_aws_name_no_endpoint() -> None:
    assert aws_commands("RecordsLost") == [f"aws s3 cp --recursive BACKUP s3://bucket/{ROOT}"]


def test_an_unknown_root_stays_a_placeholder_unless_the_spec_names_it() -> None:
    assert aws_commands("RecordsLost", None) == ["aws s3 cp --recursive BACKUP s3://bucket/ROOT"]
    assert aws_commands("RecordsLost", None, restoreFrom=ROOT) == [f"aws s3 cp --recursive BACKUP s3://bucket/{ROOT}"]


@pytest.mark.parametrize("endpoint", ["http://user:password@minio:9000", "http://minio; rm -rf ~"])
def test_an_endpoint_with_a_password_or_a_second_command_is_not_printed(endpoint: str) -> None:
    (command,) = aws_commands("RecordsLost", endpoint=endpoint)
    assert command == f"aws --endpoint-url ENDPOINT s3 cp --recursive BACKUP s3://bucket/{ROOT}"


def test_a_root_with_a_second_command_is_not_printed() -> None:
    assert aws_commands("RecordsLost", "a; rm -rf ~") == ["aws s3 cp --recursive BACKUP s3://bucket/ROOT"]


def test_an_endpoint_with_an_address_of_ip_version_6_is_quoted() -> None:
    (command,) = aws_commands("RecordsLost", endpoint="http://[fd00::1]:9000")
    assert "--endpoint-url 'http://[fd00::1]:9000' s3" in command


def test_the_trainers_finding_names_the_same_store() -> None:
    status = with_condition("TrainerReady", ConditionStatus.FALSE, "RecordsLost")
    store = {**worlds.MINIMAL["store"], "endpoint": "http://minio.storage:9000"}
    (finding,) = diagnose(snapshot(status, store=store))
    assert any(one.startswith("aws --endpoint-url http://minio.storage:9000 s3 cp") for one in finding.commands)

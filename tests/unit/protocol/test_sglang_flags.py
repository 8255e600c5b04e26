"""The operator's list of SGLang's options is that of the locked version, and finds what SGLang would refuse."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.serving import ServingSpec
from aurora_protocol.sglang_flags import Option, argument_faults, known_options
from tests.unit.docs.markdown import ROOT


def test_the_list_is_that_of_the_locked_version() -> None:
    locked = re.search(r"^sglang==(\S+)", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE)
    assert locked is not None
    assert known_options().sglang == locked[1]


def test_every_argument_that_admission_names_is_one_of_sglangs() -> None:
    """A misspelt flag in a rule would refuse nothing."""
    schema = ServingSpec.model_json_schema(by_alias=True)["properties"]["extraArgs"]
    rules = " ".join(rule["rule"] for rule in schema["x-kubernetes-validations"])
    named = set(re.findall(r"'(--[a-z-]+)'", rules))
    flags = [flag for option in known_options().options for flag in option.flags]
    assert len(named) > 20
    assert named - set(flags) == {"--speculative-", "--speculative-ngram-"}, "beginnings of flags"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--tp", "2", "--enable-metrics", "--context-length=8k"], ""),
        (["--no-such-flag", "--context-length=8192", "--tpp=2"], "SGLang has no flag --no-such-flag, --tpp"),
        (["--tp", "two"], "--tp-size needs an integer"),
        (["--tp=2.5"], "--tp-size needs an integer"),
        (["--tp"], "--tp-size needs an integer"),
        (["--mem-fraction-static", "much"], "--mem-fraction-static needs a number"),
        (["--trust-remote-code", "true"], "1 of the arguments belong to no flag"),
        (["--trust-remote-code=true"], "--trust-remote-code takes no value"),
        (["--tp", "2", "4"], "1 of the arguments belong to no flag"),
        (["stray"], "1 of the arguments belong to no flag"),
        (["--context-length", "--tp", "2"], "--context-length needs a value"),
        (["--default-chat-template-kwargs", "{"], "--default-chat-template-kwargs needs a value in JSON"),
        (["--schedule-policy", "fifo"], "--schedule-policy needs one of dfs-weight"),
        (["--schedule-pol", "fcfs"], ""),
        (["--sched", "fcfs"], "--sched is the beginning of several flags"),
        (["--cuda-graph-bs-decode", "1", "2"], ""),
        (["--cuda-graph-bs-decode", "1", "b"], "--cuda-graph-bs-decode needs an integer"),
    ],
)
def test_what_sglang_would_refuse_is_named(arguments: list[str], fault: str) -> None:
    found = argument_faults(arguments)
    assert len(found) == (fault != "")
    assert fault in "".join(found)


OPTIONS = st.sampled_from(known_options().options)
WITH_CHOICES = st.sampled_from([option for option in known_options().options if option.choices])


@given(OPTIONS, st.integers(0, 2))
def test_no_message_holds_a_value(option: Option, form: int) -> None:
    private = "p7ivat3\u00df"
    flag = option.flags[0]
    arguments = ([flag, private], [f"{flag}={private}"], [private, flag])[form]
    assert private not in " ".join(argument_faults(arguments))


@given(WITH_CHOICES, st.data())
def test_every_listed_value_is_taken(option: Option, data: st.DataObject) -> None:
    flag, value = data.draw(st.sampled_from(option.flags)), data.draw(st.sampled_from(option.choices))
    assert argument_faults([flag, str(value)]) == []


@given(st.lists(st.sampled_from(["--tp", "2", "--tp=2", "x", "-x", "--", "--lora-paths", "1.5", "--log-l", "--h", ""])))
def test_no_arguments_end_the_operator(arguments: list[str]) -> None:
    """argparse prints and exits by itself where nothing prevents it."""
    assert all(isinstance(fault, str) for fault in argument_faults(arguments))

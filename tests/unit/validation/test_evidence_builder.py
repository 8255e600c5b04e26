"""The environment of a measurement says how its engines ran."""

from __future__ import annotations

import pytest

from aurora_api.v1alpha1.draft import LookupScope
from aurora_api.v1alpha1.serving import Device
from aurora_protocol.agent_api import Machine
from aurora_runtime.engine.machine import detect_machine
from aurora_runtime.engine.speculation_flags import NGRAM_TOKENS
from aurora_runtime.validation.evidence_builder import measurement_environment
from tests.unit.validation.test_cached_baselines import settings


def test_the_environment_names_the_width_of_ngram() -> None:
    here = measurement_environment(settings(), detect_machine(Device.CPU))
    assert here.ngram_tokens == NGRAM_TOKENS


def test_a_pod_of_an_older_version_does_not_say_how_wide_its_ngram_is() -> None:
    """Its baselines are then of another environment, because another width has another speed."""
    machine = Machine(hardware="two cores", device="cpu", engine="0.5.23", torch="2")
    older, newer = (
        measurement_environment(settings(), machine.model_copy(update={"ngram_tokens": tokens})) for tokens in (0, 12)
    )
    assert measurement_environment(settings(), machine).is_comparable_with(older)
    assert not newer.is_comparable_with(older)


@pytest.mark.parametrize(
    ("lookup", "in_a_job"),
    [
        (LookupScope.SPECULATOR, LookupScope.REQUEST),
        (LookupScope.REQUEST, LookupScope.REQUEST),
        (LookupScope.OFF, LookupScope.OFF),
    ],
)
def test_a_job_says_that_its_engine_looks_in_no_other_request(lookup: LookupScope, in_a_job: LookupScope) -> None:
    given = settings()
    given = given.model_copy(update={"draft": given.draft.model_copy(update={"lookup": lookup})})
    assert measurement_environment(given, detect_machine(Device.CPU)).lookup is in_a_job

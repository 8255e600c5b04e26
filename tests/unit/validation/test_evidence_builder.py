"""The environment of a measurement says how its engines ran."""

from __future__ import annotations

import pytest
from aurora_runtime.validation.evidence_builder import measurement_environment

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_api.v1alpha1.serving import Device
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_protocol.pod_settings import StoreSettings, ValidationSettings
from aurora_runtime.engine.machine import detect_machine
from tests.assets.signing import ROOT_OWNER


def settings() -> ValidationSettings:
    return ValidationSettings(
        namespace="n",
        name="s",
        target=TargetSpec(model="m"),
        draft=DraftSpec(),
        validation=ValidationSpec(concurrencies=[1, 4], max_new_tokens=64),
        store=StoreSettings(owner=ROOT_OWNER.id, bucket="b", root="r"),
        candidate=5,
        active=2,
        attempt=2,
    )


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

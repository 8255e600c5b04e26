"""The base of all models."""

from __future__ import annotations

from aurora_api.v1alpha1.target import TargetSpec


def test_models_share_the_set_of_given_fields_and_a_copy_does_not_change_the_set() -> None:
    one, other = TargetSpec(model="one"), TargetSpec.model_validate({"model": "other"})
    assert one.model_fields_set is other.model_fields_set
    assert one.model_copy(update={"model": "two"}).model == "two"
    assert one.model_fields_set == set()

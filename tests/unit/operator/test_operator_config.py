"""The operator's own settings."""

from __future__ import annotations

import pytest

from aurora_operator.errors import ConfigError
from aurora_operator.operator_config import OperatorConfig

IMAGES = {"AURORA_RUNTIME_IMAGE": "runtime:1", "AURORA_AGENT_IMAGE": "agent:1"}


def test_images_come_from_the_environment() -> None:
    config = OperatorConfig.from_env(IMAGES)
    assert (config.runtime_image, config.agent_image) == ("runtime:1", "agent:1")


@pytest.mark.parametrize(
    ("variable", "value"), [("AURORA_RUNTIME_IMAGE", "images.runtime"), ("AURORA_AGENT_IMAGE", "images.agent")]
)
@pytest.mark.parametrize("image", [None, ""])
def test_a_missing_image_is_an_error_that_names_the_variable_and_the_charts_value(
    variable: str, value: str, image: str | None
) -> None:
    env = {key: text for key, text in IMAGES.items() if key != variable} | ({} if image is None else {variable: image})
    with pytest.raises(ConfigError, match=f"{variable} is not set.* set {value} in the values"):
        OperatorConfig.from_env(env)

"""Reads the scaling of a rotary position embedding (rope) from the fields of a published ``config.json``.

A head and a target are read alike. This module imports neither torch nor SGLang, because the agent imports it.

Invariant: a scaling that passes is computed by SGLang (0.5.23, layers/rotary_embedding/factory.py), by transformers and
by :mod:`aurora_runtime.training.model.rope` in the same way. So a field that only some of them read is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from aurora_protocol.rope_scaling import ORIGINAL, REQUIRED_FIELDS, YARN, RopeScaling

_PLAIN_FIELDS: Final = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
"""Fields of a rope without scaling. Others change it, such as ``mrope_section``."""
_YARN_DEFAULTS: Final = {"beta_fast": 32.0, "beta_slow": 1.0}
_TRUNCATE: Final = "truncate"
_YARN_OPTIONS: Final = (_TRUNCATE, "mscale", "mscale_all_dim")
_STRETCH: Final = "attention_factor"
"""The factor by which transformers scales queries and keys. SGLang ignores this field and computes the factor."""
_STRETCH_TOLERANCE: Final = 1e-3
"""Largest relative difference between the field and the factor of SGLang. Published values are rounded."""
_DEFAULT: Final = "default"


class UnsupportedRope(ValueError):
    """The rope cannot be trained as SGLang serves it. The message is the end of a sentence about the model."""


def read_rope_scaling(
    rope: Mapping[str, Any], theta: float, max_positions: int, original_positions: int | None = None
) -> RopeScaling | None:
    """The scaling that ``rope``, the object ``rope_scaling`` or ``rope_parameters``, names. None: there is no scaling.

    Args:
        theta: base of the rope.
        max_positions: longest sequence of the model that the config describes, in tokens. It is the original length
            where nothing names that.
        original_positions: the same field outside ``rope``, which overrides it.

    Raises :class:`UnsupportedRope`.
    """
    kind = rope.get("rope_type", rope.get("type", _DEFAULT))
    if kind != _DEFAULT and kind not in tuple(REQUIRED_FIELDS):
        raise UnsupportedRope(f"its rotary position embedding is scaled in the way {str(kind)[:32]} (rope_scaling)")
    known = {*REQUIRED_FIELDS.get(kind, ()), *(_YARN_OPTIONS if kind == YARN else ())}
    if unknown := sorted(map(str, rope.keys() - _PLAIN_FIELDS - known - ({_STRETCH} if kind == YARN else set()))):
        raise UnsupportedRope(
            f"its rotary position embedding is scaled by {unknown[0][:64]} too, which is not supported (rope_scaling)"
        )
    if kind == _DEFAULT:
        return None
    fields = {name: rope[name] for name in known if rope.get(name) is not None}
    if ORIGINAL in known:
        fields[ORIGINAL] = original_positions or fields.get(ORIGINAL, max_positions)
    if kind == YARN:
        fields = _YARN_DEFAULTS | fields
        if fields.get(_TRUNCATE) is True:
            del fields[_TRUNCATE]  # the default
    try:
        scaling = RopeScaling.model_validate({"rope_type": kind, **fields}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise _unusable(first["loc"][0] if first["loc"] else first["ctx"]["error"]) from error
    if theta <= 1:
        raise _unusable("rope_theta")
    if rope.get(_STRETCH) is not None:
        _require_computed_stretch(rope[_STRETCH], scaling)
    return scaling


def yarn_stretch(scaling: RopeScaling) -> float:
    """The factor by which a YaRN rope scales queries and keys: YaRN's own, or that of the two ``mscale`` fields."""
    if scaling.mscale is None or scaling.mscale_all_dim is None:
        return 0.1 * math.log(scaling.factor) + 1.0
    log = 0.1 * math.log(scaling.factor)
    return (log * scaling.mscale + 1.0) / (log * scaling.mscale_all_dim + 1.0)


def _require_computed_stretch(named: Any, scaling: RopeScaling) -> None:
    computed = yarn_stretch(scaling)
    if type(named) not in (int, float) or not abs(named - computed) <= _STRETCH_TOLERANCE * computed:
        raise UnsupportedRope(
            f"its rotary position embedding has the {_STRETCH} {str(named)[:12]}, which SGLang does not read:"
            f" it uses {computed:.4f} (rope_scaling)"
        )


def _unusable(field: object) -> UnsupportedRope:
    return UnsupportedRope(f"its rotary position embedding has no usable {field} (rope_scaling)")


def rope_scaling_json(scaling: RopeScaling) -> dict[str, Any]:
    """The fields of ``rope_scaling`` in a draft's ``config.json``."""
    return scaling.model_dump(include=set(RopeScaling.model_fields), exclude_none=True)

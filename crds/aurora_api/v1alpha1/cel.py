"""Attaches CEL rules to the models, so that the API server refuses a wrong resource with a message that helps.

The result of each function is a field's or a model's ``json_schema_extra``.
"""

from __future__ import annotations

from typing import Any


def rules(*pairs: tuple[str, str], **extra: Any) -> dict[str, Any]:
    """JSON-schema extras that carry CEL rules, given as ``(rule, message)``."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs], **extra}


def at_most(field: str, limit: int) -> str:
    """A CEL rule for an int-or-string ``field``: an integer must not exceed ``limit``.

    The field's pattern checks text.
    """
    return f"(type(self.{field}) != int || self.{field} <= {limit})"


def matches(pattern: str, message: str) -> dict[str, Any]:
    """JSON-schema extras that make the API server refuse text that does not match ``pattern``, with ``message``."""
    return rules((f"self.matches(r'{pattern}')", message))


def no_flag(arguments: str, *flags: str) -> str:
    """A CEL rule: none of ``arguments`` is one of ``flags``, nor an abbreviation of one, which argparse accepts.

    Args:
        arguments: a CEL expression for a list of command-line arguments, such as ``self``.
        flags: flags as SGLang's server knows them, such as ``--port``.
    """
    return f"{arguments}.all(a, !a.startsWith('--') || !{list(flags)}.exists(o, o.startsWith(a.split('=')[0])))"

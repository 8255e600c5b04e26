"""The speculation plugin's settings, which the launcher passes to SGLang's processes in ``AURORA_SPECULATION``.

The settings also name the runtime states that SGLang must build at its start: one for each number of steps. Invariant:
the states that the plugin activates are those that SGLang was told to build, because both come from here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from pydantic import Field

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_protocol.draft_records import INITIAL_VERSION
from aurora_protocol.record import MAX_NUMBER, Record
from aurora_runtime.engine.arms import Arm, arms_within
from aurora_runtime.engine.speculation_flags import RoundController

LOOKUP_STEPS: Final = 11
"""Tokens that lookup proposes at most. Long repetitions are worth wide rounds; wider ones pay only on large GPUs."""
PLACEHOLDER_VERSION: Final = MAX_NUMBER
"""The version number of the placeholder, with which an engine starts while its pod has no draft. No draft has it."""


class SpeculationSettings(Record):
    """The value of ``AURORA_SPECULATION``."""

    state_folder: str = Field(description="The pod's shared folder.")
    boot: str = Field(description="Random id of this engine start.")
    draft_steps: int = Field(ge=1, description="Tokens that the draft proposes at most.")
    lookup_steps: int = Field(default=LOOKUP_STEPS, ge=0, description="Tokens that lookup proposes at most.")
    lookup: LookupScope = Field(default=LookupScope.SPECULATOR, description="Whose text lookup may propose from.")
    lookup_tokens: int = Field(default=1 << 20, ge=1, description="Tokens of ended requests that lookup keeps.")
    traffic_key: str = Field(
        default="", repr=False, description="Hexadecimal key that decides which prompts are held out, as in capture."
    )
    untrained_versions: tuple[int, ...] = Field(
        default=(), description="Versions whose drafts guess nothing, so that rounds and prefills leave them out."
    )
    fixed_arms: tuple[str, ...] = Field(
        default=(),
        description="Arms that rounds take in turn instead of choosing, for measurements and tests. `union-N` is"
        " `draft-N` with lookup's tokens where lookup has any.",
    )

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms to choose from, :data:`~aurora_runtime.engine.arms.OFF` first."""
        return arms_within(self.draft_steps, 0 if self.lookup is LookupScope.OFF else self.lookup_steps)


def adaptive_config(arms: tuple[Arm, ...]) -> str:
    """The content of SGLang's ``--speculative-adaptive-config`` that builds a state for every arm.

    The key 1 means batches of one request and more (sglang/srt/speculative/adaptive_spec_params.py:208).
    """
    return json.dumps({"1": {"candidate_steps": sorted({arm.steps for arm in arms})}})


def round_controller(settings: SpeculationSettings, adaptive_config_file: Path) -> RoundController:
    """The controller of an engine with these settings. Writes ``adaptive_config_file``, which the engine reads."""
    adaptive_config_file.write_text(adaptive_config(settings.arms))
    return RoundController(adaptive_config_file, settings.to_json().decode())


def controller_of(
    draft: DraftSpec, folder: Path, boot: str, *, traffic_key: bytes = b"", held_version: int | None = None
) -> RoundController:
    """The controller of an engine that serves ``draft``. Writes the file of its steps to ``folder``.

    For a draft of fixed shape the controller is held to rounds of all ``draft.steps``.

    Args:
        traffic_key: that of the engine's traces.
        held_version: while the engine serves this version, every round is off. Lookup is off until the next start.
    """
    # A lineage that a published head began may have the head as its first version.
    untrained = (PLACEHOLDER_VERSION, *((INITIAL_VERSION,) if draft.initial is None else ()))
    settings = SpeculationSettings(
        state_folder=str(folder),
        boot=boot,
        draft_steps=draft.steps,
        lookup=draft.lookup if draft.adaptive and held_version is None else LookupScope.OFF,
        fixed_arms=() if draft.adaptive else (Arm(draft.steps, drafts=True).name,),
        traffic_key=traffic_key.hex(),
        untrained_versions=untrained if held_version is None else (*untrained, held_version),
    )
    return round_controller(settings, folder / "adaptive-steps.json")

"""What the operator tells a pod: one JSON value in the environment variable ``AURORA_SETTINGS``, per role.

A role gets only the parts of the spec that it obeys, so that a change to, say, the gate does not restart serving pods.
Credentials are never here: the store's come as ``AWS_*``, the keys of the admin API and the agent as files.
"""

from __future__ import annotations

import os
from typing import Self

from pydantic import Field

from aurora_api.v1alpha1.capture import CaptureSpec
from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.serving import Device
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.record import Record

SETTINGS_VARIABLE = "AURORA_SETTINGS"
KEYS_FOLDER = "/etc/aurora/keys"
"""Folder of the generated Secret's files: :data:`ADMIN_KEY` and :data:`AGENT_TOKEN`."""
ADMIN_KEY = "admin-key"
AGENT_TOKEN = "agent-token"  # noqa: S105 - a file name
STATE_FOLDER = "/var/lib/aurora"
"""Folder shared by the containers of an inference pod: ``drafts/``, ``spool/``."""


class StoreSettings(Record):
    """Where the speculator's root is."""

    bucket: str
    root: str
    endpoint: str | None = None
    region: str | None = None


class _Settings(Record):
    @classmethod
    def from_env(cls) -> Self:
        """Parse ``AURORA_SETTINGS``; raise :class:`InvalidRecord` when it is missing or wrong."""
        value = os.environ.get(SETTINGS_VARIABLE)
        if value is None:
            raise InvalidRecord(f"{SETTINGS_VARIABLE} is not set: the operator sets it in every pod of a speculator")
        return cls.from_json(value)

    def to_variable(self) -> str:
        """The value of ``AURORA_SETTINGS``. What is as by default stays away: a pinned older image refuses fields
        that it does not know, and must not meet them before somebody uses them."""
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)


class ServingSettings(_Settings):
    """Containers ``stage``, ``sglang`` and ``agent`` of an inference pod. The pod's name is in ``POD_NAME``."""

    namespace: str
    name: str
    target: TargetSpec
    draft: DraftSpec
    capture: CaptureSpec
    device: Device = Device.AUTO
    extra_args: list[str] = Field(default_factory=list)
    store: StoreSettings


class TrainerSettings(_Settings):
    namespace: str
    name: str
    target: TargetSpec
    draft: DraftSpec
    training: TrainingSpec
    store: StoreSettings


class Replica(Record):
    """The withdrawn inference pod to measure on, and the name and fence of its measurement."""

    pod: str
    ip: str
    measurement: str
    epoch: int = Field(ge=1)
    agent_port: int = AGENT_PORT
    engine_port: int = ENGINE_PORT


class ValidationSettings(_Settings):
    """One measurement: ``candidate`` against ``active`` and against no speculation.

    ``shape`` is a digest of what decides the engine's speed and is not in the other fields: the pod's resources above
    all. Figures of different shapes are never compared.
    """

    namespace: str
    name: str
    target: TargetSpec
    draft: DraftSpec
    validation: ValidationSpec
    device: Device = Device.AUTO
    extra_args: list[str] = Field(default_factory=list)
    store: StoreSettings
    candidate: int = Field(ge=1)
    active: int = Field(ge=0)
    attempt: int = Field(ge=1)
    image: str = ""
    shape: str = ""
    replica: Replica | None = Field(default=None, description="Measure there; unset: on engines of one's own.")

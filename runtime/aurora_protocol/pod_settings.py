"""Settings that the operator gives to a pod: one JSON value in the environment variable ``AURORA_SETTINGS``.

Why one model per role: a role gets only the parts of the spec that it uses. A change of the gate, say, then does not
restart the serving pods.

Invariant: settings hold no credentials. The store's keys, the key of the engine's admin API and the agent's token come
as files.
"""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Self

from pydantic import Field

from aurora_api.base import Model
from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.serving import DEFAULT_MAX_RUNNING_REQUESTS, Device
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.training import TrainingSpec
from aurora_api.v1alpha1.validation import MAX_ROUNDS, MIN_ROUNDS, PROMPTS_NEEDED, PROMPTS_PER_ROUND, ValidationSpec
from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.record import Record

SETTINGS_VARIABLE = "AURORA_SETTINGS"
KEYS_FOLDER = "/etc/aurora/keys"
"""Folder of a container's keys: :data:`AGENT_TOKEN` of agent and validator, the pod's own files of the engine."""
ENGINE_KEY_FOLDER = "/etc/aurora/engine"
"""Folder with this pod's :data:`ADMIN_KEY` and :data:`TRAFFIC_SECRET`. The init container makes both."""
STORE_KEYS_VARIABLE = "AURORA_STORE_KEYS"
"""Names the folder where the Secret with the store's keys is mounted. Unset: boto3 looks for credentials itself."""
STORE_KEYS_FOLDER = "/etc/aurora/store"
ACCESS_KEY, SECRET_KEY = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
"""The items of that Secret, and the files in the folder."""
SIGNING_FOLDER = "/etc/aurora/signing"
"""Folder with the one key of the speculator's signatures that a container needs (``signatures.KeyName``).

The init container has the staging key, and a validator the evidence key.
"""
ADMIN_KEY = "admin-key"
TRAFFIC_SECRET = "traffic-secret"  # noqa: S105 - a file name
"""File, beside :data:`ADMIN_KEY`, with the secret that all pods of a speculator draw the traced requests with."""
AGENT_TOKEN = "agent-token"  # noqa: S105 - a file name
EXIT_INTERRUPTED = 143
"""Exit status of a validator whose pod was told to end: 128 and the number of SIGTERM, as of any program it ends."""
PUBLISH_SECONDS = 900.0
STATE_FOLDER = "/var/lib/aurora"
"""Folder that the containers of an inference pod share. Holds ``drafts/`` and ``spool/``."""


class StoreSettings(Record):
    """The bucket and the root of one speculator."""

    bucket: str = Field(description="Name of the bucket.")
    root: str = Field(description="Prefix of all keys of the speculator.")
    owner: str = Field(description="Owner id of the speculator. Its pods write while it owns the root.")
    endpoint: str | None = Field(default=None, description="URL of the store. None: AWS S3.")
    region: str | None = Field(default=None, description="Region of the bucket.")


class _PodSettings(Record):
    """The settings that every role has. They travel in ``AURORA_SETTINGS``."""

    namespace: str
    name: str
    target: TargetSpec
    draft: DraftSpec
    store: StoreSettings
    device: Device = Device.CUDA

    @classmethod
    def from_env(cls) -> Self:
        """Parse ``AURORA_SETTINGS``. Raises :class:`InvalidRecord` when the variable is missing or wrong."""
        value = os.environ.get(SETTINGS_VARIABLE)
        if value is None:
            raise InvalidRecord(f"{SETTINGS_VARIABLE} is not set: the operator sets it in every pod of a speculator")
        return cls.from_json(value)

    def to_variable(self) -> str:
        """The value of ``AURORA_SETTINGS``, without fields at their default.

        A pod's settings then change only with a field that a user set, not with each field that a version adds.
        """
        return self.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)


class StateType(StrEnum):
    """How a trace stores the target's hidden states. ``Float8`` takes half of the bytes of ``BFloat16``."""

    BFLOAT16 = "BFloat16"
    FLOAT8 = "Float8"


class CaptureOptions(Model):
    """How a pod traces requests. The operator sets nothing here and orders a budget later. Tests and benches set it."""

    tokens_per_minute: int = Field(default=0, ge=0, description="Tokens to trace in a minute until the first order.")
    shard_seconds: float = Field(default=20, gt=0, description="Longest time that a shard stays open, in seconds.")
    state_type: StateType = StateType.FLOAT8


class ServingSettings(_PodSettings):
    """Settings of the containers ``stage``, ``sglang`` and ``agent`` of an inference pod.

    The pod's name is in ``POD_NAME``.
    """

    capture: CaptureOptions = Field(default_factory=CaptureOptions)
    max_running_requests: int = Field(
        default=DEFAULT_MAX_RUNNING_REQUESTS, ge=1, description="Most requests that the engine answers at a time."
    )
    extra_args: list[str] = Field(default_factory=list, description="Further arguments of SGLang.")


class TrainerSettings(_PodSettings):
    """Settings of the trainer."""

    training: TrainingSpec
    publish_seconds: float = Field(
        default=PUBLISH_SECONDS,
        gt=0,
        description="Time after which the trainer compares its draft even if fewer than `publishTokens` positions came."
        " No resource sets it; benches do.",
    )


class Replica(Record):
    """The inference pod to measure on, with the name and the fence of the measurement."""

    pod: str = Field(description="Name of the pod.")
    ip: str = Field(description="Address of the pod.")
    measurement: str = Field(description="Name of the validation Job.")
    epoch: int = Field(ge=1, description="Fence of the calls to the agent.")
    agent_port: int = AGENT_PORT
    engine_port: int = ENGINE_PORT


class MeasurementRounds(Model):
    """How long a measurement may take, and how large its rounds are. No resource sets this; tests do."""

    fewest: int = Field(default=MIN_ROUNDS, ge=1)
    most: int = Field(default=MAX_ROUNDS, ge=1)
    prompts: int = Field(default=PROMPTS_PER_ROUND, ge=1, description="Prompts of a round for each concurrent request.")
    distinct: int = Field(
        default=PROMPTS_NEEDED, ge=1, description="Distinct prompts that a measurement needs, for each such request."
    )


class ValidationSettings(_PodSettings):
    """Settings of one measurement: ``candidate`` against ``active`` and against no speculation."""

    validation: ValidationSpec
    rounds: MeasurementRounds = Field(default_factory=MeasurementRounds)
    max_running_requests: int = Field(
        default=DEFAULT_MAX_RUNNING_REQUESTS, ge=1, description="Most requests that each engine answers at a time."
    )
    extra_args: list[str] = Field(default_factory=list, description="Further arguments of SGLang.")
    candidate: int = Field(ge=1, description="The version to measure.")
    active: int = Field(ge=0, description="The version to compare with.")
    attempt: int = Field(ge=1, description="The attempt at measuring the candidate, from 1.")
    image: str = Field(default="", description="Container image of the engine.")
    replica: Replica | None = Field(
        default=None, description="The pod to measure on. None: start engines in the Job's own pod."
    )

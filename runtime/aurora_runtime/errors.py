"""Errors of the runtime package.

RuntimeFault
├── TraceFormatError        a shard's tensors contradict each other
├── ShardRefused            the store refuses to read one shard, and can read others
├── EngineFault             SGLang did not start, or refused an admin call
│   └── EngineGone          SGLang did not answer: it ended or hangs
│       └── EngineUnreachable   the connection to SGLang failed
├── GpuMissing              the pod shall compute on a GPU, and sees none
├── DraftRefused            a draft checkpoint must not be loaded by an engine
├── SizesDiffer             the engine started with a placeholder, and the lineage's drafts have other sizes
├── SwapRefused             a swap, lease or trial request conflicts with the pod's state
├── CheckpointFormatError   a draft checkpoint does not have SGLang's format
├── TargetUnavailable       the target's files are missing, damaged or out of reach
│   ├── HubUnreachable          the Hugging Face hub gives no answer, and the file is not cached
│   ├── MissingFile             a published model has no file of this name
│   ├── DamagedFile             a file of a published model is there, and is not what its name says
│   └── UnreadableWeight        a weight is stored in a form that the trainer cannot read
├── HeadRefused             a published head does not fit the target, or cannot be trained or served
├── ErasureUnfinished       traces of an erased tag go on arriving
├── Interrupted             the process was asked to stop while it waited
├── MeasurementError        a validation could not measure
└── EngineMismatch          the installed SGLang is not the version that our plugins were written for
"""

from __future__ import annotations


class RuntimeFault(Exception):
    """Base of every error raised by :mod:`aurora_runtime`."""


class TraceFormatError(RuntimeFault):
    """A shard's tensors contradict each other. The trainer skips the request, or the shard."""


class ShardRefused(RuntimeFault):
    """The store refuses to read a shard, although it reads others. The trainer skips the shard."""


class EngineFault(RuntimeFault):
    """SGLang did not start, or refused a call of its admin API."""


class EngineGone(EngineFault):
    """SGLang gave no answer, because it ended or hangs. Whether SGLang carried out the call is unknown."""


class EngineUnreachable(EngineGone):
    """The connection to SGLang could not be made, or broke before the answer. The network may be at fault."""


class GpuMissing(RuntimeFault):
    """The pod shall compute on a GPU, and torch sees none."""

    def __init__(self) -> None:
        super().__init__(
            "torch sees no GPU: set spec.resources.limits to a GPU (nvidia.com/gpu: 1), check the node's driver, or set"
            " serving.device: cpu"
        )


class DraftRefused(RuntimeFault):
    """A version is not registered, or its files differ from its manifest or its lineage. No engine may load it."""


class SizesDiffer(RuntimeFault):
    """The engine started with a placeholder, and the lineage's drafts have other sizes. The pod has to start again."""


class SwapRefused(RuntimeFault):
    """A swap, lease or trial request is older than an accepted one, or conflicts with a running swap or measurement.

    The agent answers with HTTP 409.
    """


class TargetUnavailable(RuntimeFault):
    """The target's files are missing, damaged or out of reach. The message names the file and its place."""


class HubUnreachable(TargetUnavailable):
    """The Hugging Face hub gives no answer, and the file was not fetched before."""


class MissingFile(TargetUnavailable):
    """A published model has no file of this name."""


class DamagedFile(TargetUnavailable):
    """A file of a published model is there, and is not what its name says."""


class UnreadableWeight(TargetUnavailable):
    """A weight of a model is stored in a form that the trainer cannot read, such as packed 4-bit numbers."""


class HeadRefused(RuntimeFault):
    """A published head does not fit the target, or Aurora cannot train it as SGLang serves it.

    The message names the head, what is wrong, and what to do.
    """


class ErasureUnfinished(RuntimeFault):
    """Traces of an erased tag go on arriving. Nothing else is left of it."""


class Interrupted(RuntimeFault):
    """The process was asked to stop while it waited."""


class CheckpointFormatError(RuntimeFault):
    """A draft checkpoint lacks fields or tensors, or their shapes are wrong."""


class MeasurementError(RuntimeFault):
    """A validation could not measure: no held-out prompts, no engine, or no time. The candidate is not at fault."""


class EngineMismatch(RuntimeFault):
    """The installed SGLang differs from what a plugin needs. The message names the version or the function."""

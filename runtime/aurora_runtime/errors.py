"""Errors of the runtime package.

RuntimeFault
├── TraceFormatError        a shard's tensors contradict each other
├── EngineFault             SGLang refused an admin call
│   └── EngineGone          SGLang did not answer: it ended, or it hangs
│       └── EngineUnreachable   the connection to SGLang failed
├── DraftRefused            a draft checkpoint is not one that an engine may load
├── SwapRefused             a swap request must not be obeyed
├── CheckpointFormatError   a draft checkpoint is not what SGLang loads
├── TargetUnavailable       the target's files are missing or out of reach
├── Interrupted             the process was asked to stop while it waited
├── MeasurementError        a validation could not measure
└── EngineMismatch          SGLang is not the version whose functions our plugins wrap
"""

from __future__ import annotations


class RuntimeFault(Exception):
    """Base of every error raised by :mod:`aurora_runtime`."""


class TraceFormatError(RuntimeFault):
    """A shard's tensors contradict each other."""


class EngineFault(RuntimeFault):
    """SGLang did not start, or refused a call of its admin API."""


class EngineGone(EngineFault):
    """SGLang gave no answer, so nothing is known of what it was asked: it ended, or it hangs."""


class EngineUnreachable(EngineGone):
    """The connection to SGLang could not be made, or broke before the answer: this may be the network's fault."""


class DraftRefused(RuntimeFault):
    """A checkpoint's files differ from its manifest or its lineage: no engine may load it."""


class SwapRefused(RuntimeFault):
    """A swap request is older than one already seen, or asks for what is not registered."""


class TargetUnavailable(RuntimeFault):
    """The target's files are missing, damaged or out of reach; the message says which file and where it was sought."""


class Interrupted(RuntimeFault):
    """The process was asked to stop while it waited for something."""


class CheckpointFormatError(RuntimeFault):
    """A draft checkpoint lacks fields or tensors, or their shapes are wrong."""


class MeasurementError(RuntimeFault):
    """A validation could not measure: no held-out prompts, no engine, no time. Never a verdict about the candidate."""


class EngineMismatch(RuntimeFault):
    """SGLang differs from the version that a hook was written for; the message names the function."""

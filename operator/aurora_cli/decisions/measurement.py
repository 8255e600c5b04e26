"""Ask for a measurement now, without the delay after one that could not be made. Pure.

Invariant: the request names one attempt. So it asks for one measurement, even if that one fails too.
"""

from __future__ import annotations

from aurora_api.v1alpha1.annotations import MEASURE_ANNOTATION, pair_text
from aurora_api.v1alpha1.status import CandidatePhase
from aurora_cli.decisions.change import Change, FieldChange
from aurora_cli.errors import Refused
from aurora_cli.speculator import Speculator


def measure(speculator: Speculator) -> Change:
    """Measure the candidate again now. Raises :class:`Refused` when there is none, or when it is decided."""
    name, candidate = speculator.name, speculator.status.candidate
    if candidate is None:
        raise Refused(
            f"{name} has no candidate: the trainer has registered no version that is newer than the active one"
        )
    version, attempt = candidate.version, candidate.attempt
    if candidate.waits_to_begin:
        effect = f"the measurement of version {version} has not begun (attempt {attempt}): {candidate.message}"
        return Change((), effect, _hindrances(speculator))
    if candidate.phase is CandidatePhase.VALIDATING:
        return Change((), f"version {version} is being measured, or waits for a place (attempt {attempt})")
    if candidate.phase is CandidatePhase.VALIDATED:
        return Change((), f"version {version} has passed")
    if candidate.phase is not CandidatePhase.FAILED:
        raise Refused(f"version {version} is {candidate.phase} and is not measured again; the next version will be")
    wanted = pair_text(version, attempt + 1)
    before = speculator.annotations.get(MEASURE_ANNOTATION)
    if before == wanted:
        return Change((), f"attempt {attempt + 1} at version {version} is asked for already", _hindrances(speculator))
    effect = f"attempt {attempt + 1} at measuring version {version} begins without the delay after the failed one"
    return Change((FieldChange(MEASURE_ANNOTATION, before, wanted),), effect, _hindrances(speculator))


def _hindrances(speculator: Speculator) -> tuple[str, ...]:
    """What keeps every measurement from beginning."""
    found = []
    if speculator.rolling is not None:
        phase = speculator.status.rollout.phase
        found.append(f"the roll of version {speculator.rolling} is {phase}: nothing is measured before it ends")
    if speculator.pin is not None:
        found.append(f"version {speculator.pin} is pinned: nothing is measured before `unpin {speculator.name}`")
    if speculator.status.ready_replicas == 0:
        found.append("no pod is ready: nothing is measured before one is")
    return tuple(found)

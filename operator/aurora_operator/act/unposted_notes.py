"""Remembers the Events and decisions that belong to a status until they are posted and counted.

Why: a plan follows from the stored status. If the API server stores a status and its answer is lost, or if an action
after the status fails, the next plan finds the decision in the status and has no Event for it.

A restarted operator remembers nothing, so a crash may still lose an Event.
"""

from __future__ import annotations

from dataclasses import replace

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.act.status_writer import stored_form
from aurora_operator.plan import EventNote, Plan

MAX_NOTES = 50
"""Notes, and decisions, that are remembered while the reconciles of a speculator fail."""


class UnpostedNotes:
    """The notes and decisions of one speculator whose status is stored, or may be."""

    def __init__(self) -> None:
        self._attempts: tuple[Plan, ...] = ()
        """The first and the last plan that may have been stored over the present status. At most one was stored,
        because a write replaces only the version of the resource that it was computed from."""
        self._notes: tuple[EventNote, ...] = ()
        self._decisions: tuple[str, ...] = ()

    def complete(self, plan: Plan, stored: SpeculatorStatus) -> Plan:
        """``plan`` with the notes and decisions that belong to ``stored``, from which it was made, in front.

        The plan's own are remembered as well, until :meth:`clear`.
        """
        for attempt in self._attempts:
            if attempt.status is not None and stored_form(attempt.status) == stored_form(stored):
                self._notes = (*self._notes, *attempt.notes)[-MAX_NOTES:]
                self._decisions = (*self._decisions, *attempt.decisions)[-MAX_NOTES:]
                self._attempts = ()
                break
        if plan.status is not None and (plan.notes or plan.decisions):
            self._attempts = (*self._attempts[:1], plan)
        return replace(plan, notes=(*self._notes, *plan.notes), decisions=(*self._decisions, *plan.decisions))

    def clear(self, plan: Plan) -> None:
        """The notes and decisions of the completed ``plan`` are posted and counted."""
        self._notes, self._decisions = (), ()
        if plan.status is not None:  # its write was answered, so no earlier attempt was stored
            self._attempts = ()

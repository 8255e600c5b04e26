from __future__ import annotations

from aurora_runtime.serving.speculation.worker.engine_control import SWITCH_NOTE, keep_last_note


def test_of_switches_in_a_row_only_the_last_note_is_kept() -> None:
    """SGLang reads the same settings from its notes as before, because a later note overrides them."""
    notes: list[tuple[str, object]] = [("start", {"dtype": "bf16"})]
    for steps in range(1000):
        notes.append((SWITCH_NOTE, {"speculative_num_steps": steps}))
        keep_last_note(notes)
    assert notes == [("start", {"dtype": "bf16"}), (SWITCH_NOTE, {"speculative_num_steps": 999})]


def test_notes_of_other_settings_stay() -> None:
    notes: list[tuple[str, object]] = [(SWITCH_NOTE, 1), ("/set_internal_state", 2), (SWITCH_NOTE, 3)]
    keep_last_note(notes)
    assert len(notes) == 3

"""Servers with the speculation plugin that are held to fixed arms, and the plain servers that make the same rounds.

Invariants: a held server has the arms, the lookup and the runtime states of a pod with the controller, and only its
choice is fixed. No group needs more than :data:`MOST_SERVERS` servers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.served.lineup import Lineup
from tests.bench.served.round_shapes import parse_shape
from tests.bench.served.servers import OFF, Arm

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.engine.speculation_flags import Eagle3, Ngram
from aurora_runtime.engine.speculation_settings import SpeculationSettings, round_controller
from aurora_runtime.serving.speculation.worker.policy import FixedArm

MOST_SERVERS: Final = 4
"""Servers that two cores and 24 GB can hold side by side."""


@dataclass(frozen=True)
class HeldArms:
    """The arms that a server takes in turn, one a round. A single one is taken in every round.

    Raises :class:`ValueError` for a name that is not an arm, and for more than two different arms.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("a server must be held to an arm")
        for name in self.names:
            FixedArm.parse(name)
        if len(set(self.names)) > MOST_SERVERS - 2:
            raise ValueError(f"{','.join(self.names)}: beside off and the turns there is room for two arms only")

    @classmethod
    def parse(cls, text: str) -> HeldArms:
        """Parse ``draft-2``, or ``lookup-2,draft-2``. Raises :class:`ValueError`."""
        return cls(tuple(name.strip() for name in text.split(",")))

    @property
    def arm(self) -> str:
        """The name of the arm in the measurement."""
        return f"held to {', '.join(self.names)}{' in turn' if len(self.names) > 1 else ''}"

    @property
    def server(self) -> str:
        """The name of the server, which is also the name of its files."""
        return f"held-{'-'.join(self.names)}"

    @property
    def alone(self) -> tuple[HeldArms, ...]:
        """One server for each different arm, in the order of the turns."""
        return tuple(HeldArms((name,)) for name in dict.fromkeys(self.names))

    @property
    def catch_ups(self) -> int:
        """How often the draft catches up while every arm has its turn once: after each change to an arm with it."""
        drafts = [FixedArm.parse(name).arm.drafts for name in self.names]
        return sum(after and not before for before, after in itertools.pairwise([drafts[-1], *drafts]))

    @property
    def plain(self) -> str:
        """The name of the plain arm that makes the same rounds. Empty: there is none."""
        if len(self.names) > 1:
            return ""
        kind, steps = self.names[0].partition("-")[0], FixedArm.parse(self.names[0]).arm.steps
        return {"off": OFF, "draft": f"EAGLE-3, {steps} steps", "lookup": f"NGRAM, {steps + 1} tokens"}.get(kind, "")


@dataclass(frozen=True)
class Group:
    """Servers that run side by side, with one without speculation.

    Attributes:
        beside_plain: whether the plain servers that make the same rounds run beside the held ones.
    """

    held: tuple[HeldArms, ...]
    beside_plain: bool


def groups_of(draft_steps: int, lookup_steps: int, turns: HeldArms) -> list[Group]:
    """The groups of a run.

    Raises:
        ValueError: the turns never make the draft catch up, or the engine does not have one of the arms.
    """
    if not turns.catch_ups:
        raise ValueError(f"{','.join(turns.names)}: the draft never catches up; add an arm without it")
    off, draft, lookup = (HeldArms((name,)) for name in ("off", f"draft-{draft_steps}", f"lookup-{lookup_steps}"))
    offered = settings_of(off, draft_steps, Path()).arms
    for name in (*draft.names, *lookup.names, *turns.names):
        if (arm := FixedArm.parse(name).arm) not in offered:
            raise ValueError(f"{name}: the engine offers {', '.join(one.name for one in offered)}, and not {arm.name}")
    return [
        Group((off, draft), beside_plain=True),
        Group((lookup,), beside_plain=True),
        Group((turns, *turns.alone), beside_plain=False),
    ]


def settings_of(held: HeldArms, draft_steps: int, state: Path) -> SpeculationSettings:
    """The plugin's settings of a held server that writes its files to ``state``."""
    return SpeculationSettings(
        state_folder=str(state),
        boot="bench",
        draft_steps=draft_steps,
        lookup=LookupScope.SPECULATOR,
        fixed_arms=held.names,
    )


def group_lineup(group: Group, draft: Path, draft_steps: int, folder: Path) -> Lineup:
    """The group's arms and servers, with the draft in the directory ``draft``. Server files go to ``folder``."""
    spec = parse_shape(str(draft_steps))
    arms, servers, ngrams = [Arm(OFF, OFF)], dict[str, Eagle3 | Ngram | None]({OFF: None}), list[str]()
    for held in group.held:
        if group.beside_plain and held.plain != OFF:
            server = held.server.replace("held", "plain")
            arms.append(Arm(held.plain, server))
            if FixedArm.parse(held.names[0]).arm.drafts:
                servers[server] = Eagle3(draft, 0, spec)
            else:
                servers[server] = Ngram(FixedArm.parse(held.names[0]).arm.width)
                ngrams.append(held.plain)
        (state := folder / held.server).mkdir()
        controller = round_controller(settings_of(held, draft_steps, state), state / "adaptive-steps.json")
        servers[held.server] = Eagle3(draft, 0, spec, controller)
        arms.append(Arm(held.arm, held.server))
    return Lineup(tuple(arms), servers, tuple(ngrams), trained=())

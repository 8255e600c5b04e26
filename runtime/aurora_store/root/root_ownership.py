"""Which speculator owns a root. Pure.

A root belongs to the speculator that it is named after, until another speculator takes it over with
``spec.store.restoreFrom``. The takeover is a record of the channel: it takes the next epoch, create-once, and names the
new owner.

Why the channel: an operator decides by writing the next epoch. A former owner that has not seen the takeover loses this
race, because the takeover holds the epoch. A former owner that has seen the takeover stops. So two owners never advance
the channel at the same time.

Invariant: a speculator that lost a root never owns it again. Two speculators that restore the same root therefore do
not take it from each other for ever.
"""

from __future__ import annotations

from aurora_protocol.draft_records import Channel, ChannelReason, Registration
from aurora_store.errors import bounded_text
from aurora_store.keys import first_owner

MAX_NAME_CHARACTERS = 400
"""Longest text that names a speculator. A namespace, a name and a part of a uid have 330 at most."""


def current_owner(channel: Channel | None, root: str) -> str:
    """The owner id of the speculator that owns ``root``."""
    return channel.owner.id if channel is not None and channel.owner is not None else first_owner(root)


def lost(channel: Channel | None, root: str, owner: str) -> bool:
    """Whether ``owner`` owned the root once, and another speculator owns it now."""
    if channel is None or current_owner(channel, root) == owner:
        return False
    return owner == first_owner(root) or owner in channel.former_owners


def is_void(registration: Registration, channel: Channel) -> bool:
    """Whether a former owner registered the version after it had lost the root. Such a version does not count.

    A trainer looks at the channel before it registers a version. A takeover between the look and the registration is
    noticed only here.
    """
    if channel.inherited_version is None or registration.version <= channel.inherited_version:
        return False
    return registration.owner != (channel.owner.id if channel.owner is not None else None)


def write_refusal(channel: Channel | None, root: str, owner: str) -> str:
    """Why ``owner`` may not write below ``root``. Empty when it may."""
    if channel is not None and channel.reason is ChannelReason.DELETING:
        return f"the root {root} is being deleted with its speculator (deletionPolicy: Delete)"
    if current_owner(channel, root) == owner:
        return ""
    if lost(channel, root, owner):
        assert channel is not None, "a root without a channel was never taken over"
        return lost_text(channel, root)
    return f"the operator has not taken the root {root} over for this speculator yet"


def owned_text(channel: Channel, root: str) -> str:
    """Which speculator owns the root, and since when."""
    new = channel.owner
    if new is None:
        return f"the root {root} belongs to the speculator with uid {first_owner(root)}…"
    speculator = bounded_text(f"{new.namespace}/{new.name} (uid {new.id}…)", MAX_NAME_CHARACTERS)
    return f"the root {root} belongs to AuroraSpeculator {speculator} since {new.since:%Y-%m-%d %H:%M} UTC"


def lost_text(channel: Channel, root: str) -> str:
    """What happened to a speculator that lost its root, and what to do."""
    return (
        f"{owned_text(channel, root)}. This speculator writes nothing more, and its pods serve on."
        " Delete this speculator once its clients use the new one"
    )

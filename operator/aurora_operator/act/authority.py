"""Decides whether this process may act on a speculator: it leads, and no other installation acts on the speculator.

The rules are in ``contest``. This module carries them out, and remembers what they need while this process leads. A
process that leads without a break has reached the API server all the time, because it has renewed its Lease. So the
time that a challenge stands is not the time of an outage. Where only writes of speculators fail, for example by an
admission webhook, the holder cannot answer. So the time begins anew after each attempt to take over that fails.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from importlib.metadata import version
from math import ceil

from aurora_api import KIND
from aurora_api.v1alpha1.status import OperatorChallenge, OperatorIdentity, SpeculatorStatus
from aurora_operator import metrics
from aurora_operator.act import contest as rules
from aurora_operator.act.challenge_answers import ChallengeAnswers
from aurora_operator.act.contest import Claim, Contest, decide, names
from aurora_operator.act.event_recorder import EventRecorder
from aurora_operator.act.status_writer import patch_status
from aurora_operator.children.owner import Owner
from aurora_operator.errors import Conflict, KubernetesError
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import KubernetesApi, Object
from aurora_operator.observe.stored_resource import status_of
from aurora_operator.operator_config import OPERATOR_NAME, OperatorConfig
from aurora_operator.plan import EventNote

log = logging.getLogger(__name__)

UNNAMED_SECONDS = 600.0
"""How long this installation acts without its name in the status before it tries to write the name again."""
MIN_WAIT_SECONDS = 0.1
_DROPS = (
    f"the API server accepted the write and dropped the field. Install the definition (CRD) of {KIND} that belongs to"
    " this operator, or find the admission webhook that changes the status"
)


class Authority:
    """The right of this process to act, for all speculators.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        api: KubernetesApi,
        config: OperatorConfig,
        ensure_leading: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ensure_leading = ensure_leading
        """Raises :class:`NotLeading` unless this process leads at this moment. Called before every act."""
        self._api, self._clock = api, clock
        self._own = OperatorIdentity(installation=config.installation, version=version(OPERATOR_NAME))
        self._events = EventRecorder(api)
        self._answers = ChallengeAnswers(api, config.installation)
        self._contests: dict[tuple[str, str], Contest] = {}
        """Namespace and name of speculators on which another installation acts."""
        self._unnamed: dict[tuple[str, str], tuple[str, float]] = {}
        """Namespace and name -> uid, and when to try again, of speculators whose status does not keep our name."""
        metrics.YIELDED.set_function(self._count_yielded)

    async def claim(self, owner: Owner, status: SpeculatorStatus) -> Claim:
        """Decide about one speculator, and carry the decision out.

        HOLD: go on. TAKE: the status was written, so observe again first. WAIT or YIELD: do nothing to this speculator
        for :meth:`wait_seconds`.

        Raises :class:`Conflict` when the speculator changed since it was read, :class:`KubernetesError`.
        """
        key, now_seconds = (owner.namespace, owner.name), self._clock()
        known = self._contests.get(key)
        made, contest = decide(owner.uid, self._own, status, known, now_seconds)
        if contest is None:
            self._contests.pop(key, None)
        else:
            self._contests[key] = contest
        match made:
            case Claim.TAKE:
                return await self._take(owner, status, contest)
            case Claim.CHALLENGE:
                assert contest is not None, "the status names another installation"
                return await self._challenge(owner, contest)
            case Claim.YIELD if contest is not None and contest.answers > (known.answers if known is not None else 0):
                await self._say_yielded(owner, contest, f"{status.operator} acts on this speculator and has answered")
        return made

    def wait_seconds(self, namespace: str, name: str) -> float:
        """Time until the next claim after WAIT or YIELD. A change of the status ends it early."""
        contest = self._contests.get((namespace, name))
        return MIN_WAIT_SECONDS if contest is None else max(MIN_WAIT_SECONDS, contest.seconds_left(self._clock()))

    def answer(self, stored: Object, *, acts: bool) -> None:
        """Answer another installation that asks whether this one acts on a speculator. Does not wait.

        Args:
            acts: whether it does. Otherwise the speculator is given up.
        """
        self._answers.look(stored, acts=acts)

    def leave_unanswered(self, stored: Object) -> None:
        """Say nothing about a speculator that this process cannot see, so that others find out that nobody acts."""
        self._answers.end(stored["metadata"]["uid"])

    def forget(self, namespace: str, name: str) -> None:
        """Free what is remembered about a speculator that is gone, or in whose namespace this operator does not act."""
        self._contests.pop((namespace, name), None)
        self._unnamed.pop((namespace, name), None)

    async def stop(self) -> None:
        """Forget everything, because this process no longer leads."""
        await self._answers.stop()
        self._contests.clear()
        self._unnamed.clear()

    def _count_yielded(self) -> int:
        return sum(contest.answers > 0 for contest in self._contests.values())

    async def _take(self, owner: Owner, status: SpeculatorStatus, contest: Contest | None) -> Claim:
        """Write this installation's name. The same write removes a challenge."""
        key, now_seconds = (owner.namespace, owner.name), self._clock()
        uid, retry_seconds = self._unnamed.get(key, ("", 0.0))
        if uid == owner.uid and now_seconds < retry_seconds and contest is None:
            return Claim.HOLD
        own = self._own.model_dump(mode="json", by_alias=True)
        changes = {"operator": own, "operatorChallenge": None}
        try:
            written = status_of(await call_api(patch_status, self._api, owner, changes))
        except Conflict:
            raise
        except KubernetesError:
            if contest is not None:  # the holder could not write an answer either
                self._contests[key] = contest.waiting(contest.nonce, self._clock())
            raise
        if names(written.operator, self._own):
            self.forget(*key)
            if contest is not None:
                text = f"because {status.operator} did not answer for {rules.CHALLENGE_SECONDS:.0f} s"
                log.warning("%s: %s acts from now on, %s", owner.full_name, self._own, text)
            return Claim.TAKE
        if contest is not None:
            return await self._give_way(owner, contest, f"{self._own} cannot write its name into status.operator")
        if uid != owner.uid:
            text = "cannot write status.operator, so this operator acts as if it were the only one"
            log.warning("%s: %s: %s", owner.full_name, text, _DROPS)
        self._unnamed[key] = (owner.uid, now_seconds + UNNAMED_SECONDS)
        return Claim.HOLD

    async def _challenge(self, owner: Owner, contest: Contest) -> Claim:
        """Ask the named installation whether it still acts."""
        challenge = OperatorChallenge(**dict(self._own), nonce=uuid.uuid4().hex[:8])
        changes = {"operatorChallenge": challenge.model_dump(mode="json", by_alias=True)}
        written = status_of(await call_api(patch_status, self._api, owner, changes)).operator_challenge
        if written is None or written.nonce != challenge.nonce:
            return await self._give_way(owner, contest, f"{self._own} cannot write status.operatorChallenge")
        log.info("%s: %s asks whether the operator %s still acts", owner.full_name, self._own, contest.holder)
        self._contests[owner.namespace, owner.name] = contest.waiting(challenge.nonce, self._clock())
        return Claim.WAIT

    async def _give_way(self, owner: Owner, contest: Contest, failure: str) -> Claim:
        """Yield because a write was dropped, so that nobody can be asked or replaced."""
        contest = contest.answered(self._clock())
        self._contests[owner.namespace, owner.name] = contest
        await self._say_yielded(owner, contest, f"{failure}: {_DROPS}")
        return Claim.YIELD

    async def _say_yielded(self, owner: Owner, contest: Contest, reason: str) -> None:
        """Say after each answer that another installation acts. An hour has at most one Event."""
        minutes = ceil((rules.MAX_PAUSE_SECONDS + rules.CHALLENGE_SECONDS) / 60)
        message = (
            f"{reason}. {self._own} does not act on it, and asks again from time to time. Run only one of the two here:"
            f" uninstall one, or give each its own namespaces. The other one then acts within {minutes} minutes"
        )
        if contest.answers == 1:
            log.warning("%s: %s", owner.full_name, message)
        await self._events.post(EventNote("OperatorYielded", message, warning=True), owner)

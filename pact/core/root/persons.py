"""Requests that people seal, and the root's sealed answers: the seals pass every aggregator between the two.  # T14

A person's program asks for a *challenge* before each request; the answer also says which root leads. A request that is
sealed with the challenge belongs to the key's owner, whoever carries it, and is accepted once, and soon: a challenge
says when it was made. The root does not store one before it is used: a client that asks for many keeps nobody else out.
"""

from __future__ import annotations

import hmac
from typing import Final

from pact.core.tree import seals as seals_
from pact.core.tree.seals import Key, RootSeals
from pact.core.tree.wire import Head, NewHead
from pact.errors import ConflictError, DeniedError, UnreachableError
from pact.model import NS_PER_S

CHALLENGE: Final = "challenge"  # the operation that asks for a challenge
USED_MAX: Final = 10_000
#: From the making of a challenge to the request: a way to the person and back, and what the root has to do before.
ANSWERED_NS: Final = 60 * NS_PER_S
HEX: Final = frozenset("0123456789abcdef")
UNKNOWN: Final = "this request was sealed for another root, or came before"
HELD: Final = "an aggregator that it came through stands still, or the root has much to do"
LOOK: Final = "look what was done before you repeat it"
NOT_SEALED: Final = "this cluster is sealed: the root takes only what its asker has sealed"
HINT: Final = "name the roots' keys in client.toml (roots = [...]), or ask the root itself: --via"


def _number(digits: str) -> int:
    return int(digits, 16) if digits and set(digits) <= HEX and len(digits) <= 15 else 0


class _Sealed:
    """For whom the answers to one request are sealed. ``seal``: of the request; "" if it only asks for a challenge."""

    __slots__ = ("challenge", "key", "n", "seal")

    def __init__(self, key: Key, seal: str, challenge: str) -> None:
        self.key, self.seal, self.challenge, self.n = key, seal, challenge, 0


class Persons:
    """The sealed requests of one term. ``secret``: random, known to nobody else."""

    def __init__(self, seals: RootSeals, secret: bytes) -> None:
        self._seals = seals
        self._secret = secret
        self._count = 0
        self._used: set[int] = set()
        self._floor = 0  # challenges up to this one are no longer accepted
        self._askers: dict[tuple[str, int], _Sealed] = {}

    def challenge(self, head: Head) -> NewHead:
        """A new challenge for the person that the request names: only that person can use it. Raises DeniedError."""
        key = self._key(head["person"])
        self._askers[head["client"], head["id"]] = _Sealed(key, "", head["challenge"])
        self._count += 1
        made_s = self._seals.t_ns // NS_PER_S
        new = f"{self._count:x}.{self._mac(self._count, head['person'], made_s)}.{made_s:x}"
        return {"v": 1, "root": self._seals.id, "challenge": new}

    def came_before(self, head: Head) -> bool:
        """Whether a request with this number is being answered already: whoever carries it has told it twice, or told
        another one in its place. What is said of the second would be sealed as the answer to the first. Or it has been
        answered: what would be said of the second, without a seal, may overtake that answer."""
        if (head["client"], head["id"]) in self._askers:
            return True
        return head["op"] != CHALLENGE and _number(head["challenge"].partition(".")[0]) in self._used

    def authenticated(self, head: Head, body: bytes) -> Head:
        """The head with the caller that its seal proves. Raises DeniedError or ConflictError; then nothing is done."""
        if not head["seal"]:
            if head["direct"] or not self._seals.required:
                return head
            raise DeniedError(NOT_SEALED, HINT)
        key, person = self._key(head["person"]), self._seals.keys.person(head["person"])
        assert person is not None
        if not seals_.fits(key, seals_.of_request(head, body), head["seal"]):
            raise DeniedError("the seal of this request is not that of the key that it names")
        self._take(head["challenge"], head["person"])
        self._askers[head["client"], head["id"]] = _Sealed(key, head["seal"], head["challenge"])
        return {**head, "caller": {"user": person[0], "role": person[1], "via": "cluster"}}

    def _take(self, challenge: str, public: str) -> None:
        """Accept a challenge once, and soon. Raises ConflictError, UnreachableError."""
        digits, _, rest = challenge.partition(".")
        mac, _, made = rest.partition(".")
        n, made_s = _number(digits), _number(made)
        if (
            not self._floor < n <= self._count
            or n in self._used
            or not hmac.compare_digest(self._mac(n, public, made_s).encode(), mac.encode("utf-8", "replace"))
        ):
            raise ConflictError(UNKNOWN, LOOK)
        late_ns = self._seals.t_ns - made_s * NS_PER_S
        if late_ns > ANSWERED_NS:  # T16: the person was told that there is no answer
            raise UnreachableError(
                f"it was held back for {late_ns // NS_PER_S} s on the way to the root; nothing was done", HELD
            )
        self._used.add(n)
        if len(self._used) > USED_MAX:
            self._floor = min(self._used)
            self._used.discard(self._floor)

    def _key(self, public: str) -> Key:
        if not public:
            raise DeniedError(
                "this came without its asker's key: an aggregator on the way is older than the client",
                "take roots out of client.toml until it is not, or ask the root: --via",
            )
        if self._seals.keys.person(public) is None or not (key := self._seals.keys.shared(public)):
            raise DeniedError(
                "the root knows no person with this key", "it must stand in the root's authorized_keys.toml"
            )
        return key

    def _mac(self, n: int, public: str, made_s: int) -> str:
        return seals_.text(seals_.seal(self._secret, seals_.essence(seals_.CHALLENGE, (n, public, made_s))))

    def sealed(self, kind: str, head: Head, body: bytes) -> Head:
        """The head of a message to a person, with its number and seal if the person's request was sealed."""
        where = (head["client"], head["id"])
        asker = self._askers.get(where)
        if asker is None:
            return head
        head = {**head, "n": asker.n}
        asker.n += 1
        what = seals_.of_reply(kind, asker.seal, asker.challenge, head, body)
        if kind == "result":
            del self._askers[where]
        return {**head, "seal": seals_.text(seals_.seal(asker.key, what))}

    def cancelled(self, client: str, id_: int) -> None:
        """The client no longer listens to this request (0: to none)."""
        for where in [w for w in self._askers if w[0] == client and id_ in (0, w[1])]:
            del self._askers[where]

"""Who may go first: which flow a request belongs to, and who gets the next seat when there are more asking than seats.

Owns the rules of API priority and fairness: a FlowSchema puts a request into a flow of a priority level, a level has a
share of the server's seats, lends idle ones, and queues what finds none, fairly between its flows: each flow may use
only a few of the level's queues, and the queues are served in turn. Promises that a level's queues are bounded and that
one flow's flood leaves room for others. Pure: it is told of arrivals and ends, waits for nothing, and whoever waits in
a queue is an opaque ticket to it. Called by `flowcontrol`.

Upstream: k8s.io/apiserver/pkg/util/flowcontrol.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
ALL = "*"


@dataclass(frozen=True, slots=True)
class Asked:
    """What classification looks at. `plural` "" asks for the non-resource `path`; `plural` carries its subresource."""

    user: str
    groups: tuple[str, ...]
    verb: str
    group: str = ""
    plural: str = ""
    namespace: str = ""
    path: str = ""


# --- which schema ------------------------------------------------------------------------------------------------


def concerns(schema: Object, asked: Asked) -> bool:
    """Whether a FlowSchema is about a request."""
    return any(_rule(rule, asked) for rule in (schema.get("spec") or {}).get("rules") or ())


def _rule(rule: Object, asked: Asked) -> bool:
    if not any(_subject(subject, asked) for subject in rule.get("subjects") or ()):
        return False
    if asked.plural:
        return any(_resource(r, asked) for r in rule.get("resourceRules") or ())
    return any(_in(asked.verb, r.get("verbs")) and any(_path(u, asked.path) for u in r.get("nonResourceURLs") or ())
               for r in rule.get("nonResourceRules") or ())


def _subject(subject: Object, asked: Asked) -> bool:
    match subject.get("kind"):
        case "User":
            return (subject.get("user") or {}).get("name") in (ALL, asked.user)
        case "Group":
            name = (subject.get("group") or {}).get("name")
            return name == ALL or name in asked.groups
        case "ServiceAccount":
            account = subject.get("serviceAccount") or {}
            prefix = f"system:serviceaccount:{account.get('namespace')}:"
            return asked.user.startswith(prefix) and account.get("name") in (ALL, asked.user[len(prefix):])
    return False


def _resource(rule: Object, asked: Asked) -> bool:
    if not (_in(asked.verb, rule.get("verbs")) and _in(asked.group, rule.get("apiGroups"))
            and _in(asked.plural, rule.get("resources"))):
        return False
    if not asked.namespace:
        return bool(rule.get("clusterScope"))
    return _in(asked.namespace, rule.get("namespaces"))


def _in(value: str, listed: Sequence[str] | None) -> bool:
    return bool(listed) and (value in listed or ALL in listed)  # type: ignore[operator]


def _path(pattern: str, path: str) -> bool:
    return pattern in (ALL, path) or (pattern.endswith("*") and path.startswith(pattern[:-1]))


def choose(schemas: Iterable[Object], asked: Asked) -> Object | None:
    """The matching schema of the lowest precedence, by name among equals. `schemas` come in that order."""
    return next((schema for schema in schemas if concerns(schema, asked)), None)


def precedence(schema: Object) -> tuple[int, str]:
    """Sort key of schemas."""
    return (schema.get("spec") or {}).get("matchingPrecedence") or 1000, schema["metadata"]["name"]


def distinguisher(schema: Object, asked: Asked) -> str:
    """What tells this request's flow from others of the same schema."""
    method = ((schema.get("spec") or {}).get("distinguisherMethod") or {}).get("type")
    return asked.user if method == "ByUser" else asked.namespace if method == "ByNamespace" else ""


# --- which seat --------------------------------------------------------------------------------------------------


def shares(levels: Iterable[Object], seats: int) -> dict[str, int]:
    """How many seats each Limited level has by right: its part of `seats`, rounded up."""
    limited = {level["metadata"]["name"]: _limits(level) for level in levels if _limited(level)}
    whole = sum(_share(spec) for spec in limited.values()) or 1
    return {name: -(-seats * _share(spec) // whole) for name, spec in limited.items()}


def _limited(level: Object) -> bool:
    return (level.get("spec") or {}).get("type") == "Limited"


def _limits(level: Object) -> Object:
    return (level.get("spec") or {}).get("limited") or {}


def _share(limited: Object) -> int:
    found = limited.get("nominalConcurrencyShares")
    return 30 if found is None else int(found)  # upstream's default


class Level:
    """The seats and queues of one priority level. `exempt` levels seat everybody.

    `arrive` gives True (take the seat), False (refuse) or None (`ticket` waits in a queue); `leave` gives a seat back
    and returns the ticket that takes it, if any."""

    def __init__(self, name: str, spec: Object, seats: int) -> None:
        limited = spec.get("limited") or {}
        response = limited.get("limitResponse") or {}
        queuing = (response.get("queuing") or {}) if response.get("type") == "Queue" else {}
        self.name = name
        self.exempt = spec.get("type") == "Exempt"
        self.seats = seats
        self.lendable = seats * (limited.get("lendablePercent") or 0) // 100
        borrowing = limited.get("borrowingLimitPercent")
        self.may_borrow = None if borrowing is None else seats * borrowing // 100
        self.executing = 0
        self.waiting = 0
        self.rejected = 0
        self.dispatched = 0
        self._queues: list[deque[Any]] = [deque() for _ in range(queuing.get("queues") or (64 if queuing else 0))]
        self._hand = min(queuing.get("handSize") or 8, len(self._queues))
        self._longest = queuing.get("queueLengthLimit") or 50
        self._next = 0

    @property
    def idle(self) -> int:
        """Seats it can lend now."""
        return max(0, min(self.lendable, self.seats - self.executing))

    @property
    def borrowed(self) -> int:
        return max(0, self.executing - self.seats)

    def arrive(self, flow: str, ticket: Any, others: Iterable[Level]) -> bool | None:
        """A request of `flow` has come; `others` are all levels."""
        if not self.waiting and self.free(others):
            self.executing += 1
            self.dispatched += 1
            return True
        queue = self._shortest(flow)
        if queue is None or len(queue) >= self._longest:
            self.rejected += 1
            return False
        queue.append(ticket)
        self.waiting += 1
        return None

    def free(self, others: Iterable[Level]) -> bool:
        """Whether a seat is free: its own, or one that others lend."""
        if self.executing < self.seats:
            return True
        if self.may_borrow is not None and self.borrowed >= self.may_borrow:
            return False
        lent = spare = 0
        for level in others:
            lent += level.borrowed
            spare += level.idle if level is not self else 0
        return lent < spare

    def leave(self) -> None:
        self.executing -= 1

    def next_ticket(self, others: Iterable[Level]) -> Any | None:
        """The ticket whose turn it is, seated; None when nobody waits or no seat is free."""
        if not self.waiting or not self.free(others):
            return None
        for step in range(len(self._queues)):
            place = (self._next + step) % len(self._queues)
            if self._queues[place]:
                self._next = place + 1
                self.waiting -= 1
                self.executing += 1
                self.dispatched += 1
                return self._queues[place].popleft()
        return None

    def drop(self, ticket: Any) -> bool:
        """Take a ticket out that no longer waits; False when it was not in a queue."""
        for queue in self._queues:
            if ticket in queue:
                queue.remove(ticket)
                self.waiting -= 1
                return True
        return False

    def tickets(self) -> list[Any]:
        """Everybody who waits; their queues are emptied."""
        found = [ticket for queue in self._queues for ticket in queue]
        for queue in self._queues:
            queue.clear()
        self.waiting = 0
        return found

    def _shortest(self, flow: str) -> deque[Any] | None:
        """The shortest queue of the flow's hand."""
        if not self._queues:
            return None
        return min((self._queues[i] for i in hand(flow, len(self._queues), self._hand)), key=len)


def hand(flow: str, queues: int, size: int) -> list[int]:
    """The `size` different queues a flow may use: dealt from its hash, so that two flows seldom share them all."""
    entropy = int.from_bytes(hashlib.blake2b(flow.encode("utf-8", "surrogateescape"), digest_size=16).digest(), "big")
    cards = list(range(queues))
    dealt = []
    for _ in range(size):
        entropy, place = divmod(entropy, len(cards))
        dealt.append(cards.pop(place))
    return dealt

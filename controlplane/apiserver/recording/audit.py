"""Who asked for what: audit events by a policy, and the id every answer carries.

Owns the policy (which requests are recorded at which level, and which stages are left out), the events of
audit.k8s.io/v1 and the ids. Promises that a server without a policy pays for nothing but the id, that of requests
about Secrets and tokens no body is recorded whatever the policy says (unlike upstream: no secret belongs in a log),
and that a body which is no JSON is left out. The file is `logfile`'s. Called by the pipeline.

Upstream: k8s.io/apiserver/pkg/audit, k8s.io/apiserver/pkg/audit/policy.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson

from controlplane.apiserver.recording.logfile import LogFile
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import Answer, Response, Stream, Writer
from controlplane.machinery.clock import Clock, rfc3339_micro
from controlplane.machinery.errors import Finding

LEVELS = ("None", "Metadata", "Request", "RequestResponse")
STAGES = ("RequestReceived", "ResponseStarted", "ResponseComplete", "Panic")
MAX_BODY = 1 << 20  # bytes of one body that is recorded; a longer one would fill the log with one line
MAX_ID = 64  # characters of an id a client chose
SECRET = ("secrets", "serviceaccounts/token", "tokenreviews")  # resources recorded at Metadata at most
Object = dict[str, Any]


class Ids:
    """Ids of requests: UUIDs of one random beginning, counted, which costs a tenth of random ones."""

    def __init__(self, clock: Clock) -> None:
        first, second, third, fourth, _ = clock.uid().split("-")
        self._prefix = f"{first}-{second}-{third}-{fourth}-".encode()
        self._count = itertools.count(clock.random.getrandbits(46))

    def line(self, given: str | None) -> bytes:
        """The header line of an answer: the client's own id when it brought one."""
        if given and len(given) <= MAX_ID and given.isascii() and given.isprintable():
            return b"Audit-Id: %b\r\n" % given.encode()
        return b"Audit-Id: %b%012x\r\n" % (self._prefix, next(self._count))


def id_of(request: Request) -> str:
    return request.trace[10:].partition(b"\r\n")[0].decode()


# --- policy ------------------------------------------------------------------------------------------------------


def load(path: Path) -> Object:
    """The Policy in a file. Raises Finding."""
    import yaml
    try:
        policy = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise Finding(f"cannot read the audit policy {path}: {error}", "", "give a file of kind Policy") from None
    return checked(policy, str(path))


def checked(policy: Any, where: str) -> Object:
    """The policy, when it is one. Raises Finding."""
    def wrong(why: str) -> Finding:
        return Finding(f"the audit policy {where} is not usable: {why}", "",
                       "see https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/")
    if not isinstance(policy, dict) or policy.get("kind") != "Policy" \
            or policy.get("apiVersion") != "audit.k8s.io/v1":
        raise wrong("it is no Policy of audit.k8s.io/v1")
    rules = policy.get("rules")
    if not isinstance(rules, list) or not rules:
        raise wrong("it has no rules")
    for index, rule in enumerate(rules):
        if not isinstance(rule, dict) or rule.get("level") not in LEVELS:
            raise wrong(f"rules[{index}].level must be one of {', '.join(LEVELS)}")
        if rule.get("resources") and rule.get("nonResourceURLs"):
            raise wrong(f"rules[{index}] cannot apply to both regular resources and non-resource URLs")
    for stages in (policy, *rules):
        if unknown := [s for s in stages.get("omitStages") or () if s not in STAGES]:
            raise wrong(f"omitStages knows no {unknown[0]}")
    found: Object = policy
    return found


def rule_of(policy: Object, request: Request) -> Object:
    """The first rule about a request; one of level None when there is none."""
    return next((r for r in policy["rules"] if concerns(r, request)), {"level": "None"})


def concerns(rule: Object, request: Request) -> bool:
    """Whether a rule is about a request; what a rule does not name it does not ask for. Pure."""
    user = request.user
    name, groups = (user.name, user.groups) if user is not None else ("", ())
    if rule.get("users") and name not in rule["users"]:
        return False
    if rule.get("userGroups") and not set(rule["userGroups"]) & set(groups):
        return False
    if rule.get("verbs") and request.verb not in rule["verbs"]:
        return False
    if not (rule.get("namespaces") or rule.get("resources") or rule.get("nonResourceURLs")):
        return True
    if not request.is_resource:
        return any(u == request.path or u == "*" or (u.endswith("*") and request.path.startswith(u[:-1]))
                   for u in rule.get("nonResourceURLs") or ())
    if rule.get("nonResourceURLs"):
        return False
    if rule.get("namespaces") and request.namespace not in rule["namespaces"]:
        return False
    return not rule.get("resources") or any(_resource(r, request) for r in rule["resources"])


def asked(request: Request) -> str:
    """`pods`, or `pods/log`."""
    return f"{request.plural}/{request.subresource}" if request.subresource else request.plural


def _resource(entry: Object, request: Request) -> bool:
    if (entry.get("group") or "") != request.target.group:
        return False
    names, sub = entry.get("resources"), request.subresource
    if not names:
        return True
    if entry.get("resourceNames") and request.name not in entry["resourceNames"]:
        return False
    return any(n in ("*", asked(request)) or (sub and n in (f"{request.plural}/*", f"*/{sub}")) for n in names)


# --- events ------------------------------------------------------------------------------------------------------


class Auditor:
    """Writes the events of one server."""

    def __init__(self, policy: Object, log: LogFile, clock: Clock) -> None:
        self._policy = policy
        self._log = log
        self._clock = clock

    async def close(self) -> None:
        await self._log.close()

    def received(self, request: Request) -> None:
        """A request has come and its sender is known."""
        request.received = self._clock.now()
        self._tell(request, "RequestReceived", None)

    def answered(self, request: Request, answer: Answer) -> None:
        """Its answer is decided; what grows is complete only when it has ended."""
        if not isinstance(answer, Stream):
            self._tell(request, "ResponseComplete", answer)
            return
        self._tell(request, "ResponseStarted", answer)
        answer.run = self._followed(request, answer, answer.run)

    def _followed(self, request: Request, answer: Stream,
                  run: Callable[[Writer], Awaitable[None]]) -> Callable[[Writer], Awaitable[None]]:
        async def followed(writer: Writer) -> None:
            try:
                await run(writer)
            finally:
                self._tell(request, "ResponseComplete", answer)
        return followed

    def _tell(self, request: Request, stage: str, answer: Answer | None) -> None:
        rule = rule_of(self._policy, request)
        omitted = rule.get("omitStages") or self._policy.get("omitStages") or ()
        if rule["level"] != "None" and stage not in omitted:
            if asked(request) in SECRET:
                rule = {**rule, "level": "Metadata"}
            made = event(request, stage, rule, answer, self._clock, self._policy)
            self._log.write(orjson.dumps(made) + b"\n")


def event(request: Request, stage: str, rule: Object, answer: Answer | None, clock: Clock, policy: Object) -> Object:
    """One Event."""
    user, now, where = request.user, clock.now(), request.target
    made: Object = {"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": rule["level"],
                    "auditID": id_of(request), "stage": stage,
                    "requestURI": request.path + (f"?{request.raw_query}" if request.raw_query else ""),
                    "verb": request.verb,
                    "user": (request.asker or user).as_info() if user is not None else {},
                    **({"impersonatedUser": user.as_info()} if request.asker is not None else {}),
                    "sourceIPs": [request.remote], "userAgent": request.user_agent}
    if where.plural:
        found = {"resource": where.plural, "namespace": request.namespace, "name": request.name,
                 "apiGroup": where.group, "apiVersion": where.version, "subresource": request.subresource}
        made["objectRef"] = {k: v for k, v in found.items() if v}
    if answer is not None:
        made["responseStatus"] = {"metadata": {}, "code": answer.status}
        made["annotations"] = {"authorization.k8s.io/decision": "forbid" if answer.status == 403 else "allow",
                               **(request.annotations or {})}
        level = LEVELS.index(rule["level"])
        slim = bool(rule.get("omitManagedFields", policy.get("omitManagedFields")))
        if level >= 2 and request.verb not in ("get", "list", "watch") \
                and (obj := _body(request.read_body(), slim)) is not None:
            made["requestObject"] = obj
        if level >= 3 and isinstance(answer, Response) and (obj := _body(answer.body, slim)) is not None:
            made["responseObject"] = obj
    made["requestReceivedTimestamp"] = rfc3339_micro(request.received or now)
    made["stageTimestamp"] = rfc3339_micro(now)
    return made


def _body(data: bytes | None, slim: bool) -> Object | None:
    """A recorded body: JSON objects and lists of a bounded size."""
    if not data or len(data) > MAX_BODY or data[:1] not in b"{[":
        return None
    try:
        obj: Object = orjson.loads(data)
    except ValueError:
        return None
    if slim and isinstance(obj, dict):
        for one in (obj, *(obj.get("items") or ())):
            if isinstance(one, dict) and isinstance(one.get("metadata"), dict):
                one["metadata"].pop("managedFields", None)
    return obj

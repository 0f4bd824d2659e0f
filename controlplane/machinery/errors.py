"""The one error tree: Kubernetes' Status taxonomy, and findings for people.

Owns every error that may cross a component's edge. An `ApiError` *is* a `metav1.Status`: it carries the HTTP code, the
machine-readable reason, the message clients print and the details (name, group, kind, causes with field paths). The
apiserver raises them and serves `status()`; the client rebuilds them from a response with `from_status`, so a
controller catches `NotFound` and never reads a number. `Finding` is for what a person must act on: the fact, why it
matters and the command or change that mends it. Wording follows upstream wherever tools or people grep it.

Upstream: k8s.io/apimachinery/pkg/api/errors and util/validation/field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Cause:
    """One field's fault: `reason` is a metav1.CauseType, `field` a path such as `spec.containers[0].name`."""

    reason: str
    message: str
    field: str

    def as_dict(self) -> dict[str, str]:
        return {"reason": self.reason, "message": self.message, "field": self.field}

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


@dataclass(eq=False)  # an exception is compared by identity; frozen would break traceback bookkeeping
class Finding(Exception):  # it is raised where a person must act, and printed where they look
    """Something a person must act on: `fact` (what is), `because` (why it matters), `fix` (the change or command)."""

    fact: str
    because: str = ""
    fix: str = ""

    def __str__(self) -> str:
        text = self.fact + (f": {self.because}" if self.because else "")
        return text + (f"\n  fix: {self.fix}" if self.fix else "")


class ApiError(Exception):
    """A failed request as Kubernetes tells it. Subclasses fix `code` and `reason`."""

    code: ClassVar[int] = 500
    reason: ClassVar[str] = "InternalError"

    def __init__(self, message: str, details: dict[str, Any] | None = None, *, code: int | None = None,
                 reason: str | None = None, continue_token: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.http_code = self.code if code is None else code
        self.status_reason = self.reason if reason is None else reason
        self.continue_token = continue_token

    def status(self) -> dict[str, Any]:
        """The metav1.Status object that goes on the wire."""
        body: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                                "message": self.message}
        if self.continue_token:
            body["metadata"] = {"continue": self.continue_token}
        if self.status_reason:
            body["reason"] = self.status_reason
        if self.details is not None:
            body["details"] = self.details
        body["code"] = self.http_code
        return body

    @property
    def causes(self) -> list[Cause]:
        found = (self.details or {}).get("causes") or []
        return [Cause(c.get("reason", ""), c.get("message", ""), c.get("field", "")) for c in found]


def _about(name: str, group: str, kind: str, causes: list[Cause] | None = None, **more: Any) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if name:
        details["name"] = name
    if group:
        details["group"] = group
    if kind:
        details["kind"] = kind
    if causes:
        details["causes"] = [c.as_dict() for c in causes]
    details.update(more)
    return details


def qualified(resource: str, group: str) -> str:
    """`deployments.apps`, or plain `pods` for the core group: how messages name a resource."""
    return f"{resource}.{group}" if group else resource


class BadRequest(ApiError):
    code, reason = 400, "BadRequest"


class Unauthorized(ApiError):
    code, reason = 401, "Unauthorized"

    def __init__(self, message: str = "Unauthorized", details: dict[str, Any] | None = None, **more: Any) -> None:
        super().__init__(message, details, **more)


class Forbidden(ApiError):
    """403. Build with `Forbidden.of(...)` for a resource; the plain constructor takes a whole message."""

    code, reason = 403, "Forbidden"

    @classmethod
    def of(cls, resource: str, name: str, why: str, group: str = "", causes: list[Cause] | None = None) -> Forbidden:
        subject = f'{qualified(resource, group)} "{name}"' if name else qualified(resource, group)
        return cls(f"{subject} is forbidden: {why}", _about(name, group, resource, causes))


class NotFound(ApiError):
    code, reason = 404, "NotFound"

    @classmethod
    def of(cls, resource: str, name: str, group: str = "") -> NotFound:
        return cls(f'{qualified(resource, group)} "{name}" not found', _about(name, group, resource))

    @classmethod
    def path(cls) -> NotFound:
        return cls("the server could not find the requested resource", {})


class MethodNotAllowed(ApiError):
    code, reason = 405, "MethodNotAllowed"

    def __init__(self, message: str = "the server does not allow this method on the requested resource",
                 details: dict[str, Any] | None = None, **more: Any) -> None:
        super().__init__(message, {} if details is None else details, **more)


class NotAcceptable(ApiError):
    code, reason = 406, "NotAcceptable"


class AlreadyExists(ApiError):
    code, reason = 409, "AlreadyExists"

    @classmethod
    def of(cls, resource: str, name: str, group: str = "", *, deleting: bool = False) -> AlreadyExists:
        prefix = "object is being deleted: " if deleting else ""
        return cls(f'{prefix}{qualified(resource, group)} "{name}" already exists', _about(name, group, resource))


STALE = "the object has been modified; please apply your changes to the latest version and try again"


class Conflict(ApiError):
    code, reason = 409, "Conflict"

    @classmethod
    def of(cls, resource: str, name: str, group: str = "", why: str = STALE,
           causes: list[Cause] | None = None) -> Conflict:
        return cls(f'Operation cannot be fulfilled on {qualified(resource, group)} "{name}": {why}',
                   _about(name, group, resource, causes))


class Expired(ApiError):
    """410: the asked-for revision is compacted; list again."""

    code, reason = 410, "Expired"


class TooLarge(ApiError):
    code, reason = 413, "RequestEntityTooLarge"


class UnsupportedMediaType(ApiError):
    code, reason = 415, "UnsupportedMediaType"


class Invalid(ApiError):
    code, reason = 422, "Invalid"

    @classmethod
    def of(cls, kind: str, name: str, causes: list[Cause], group: str = "") -> Invalid:
        seen = list(dict.fromkeys(str(c) for c in causes))
        text = seen[0] if len(seen) == 1 else "[" + ", ".join(seen) + "]"
        return cls(f'{qualified(kind, group)} "{name}" is invalid: {text}', _about(name, group, kind, causes))


class TooManyRequests(ApiError):
    code, reason = 429, "TooManyRequests"


class InternalError(ApiError):
    code, reason = 500, "InternalError"

    @classmethod
    def of(cls, why: str) -> InternalError:
        return cls(f"Internal error occurred: {why}", {"causes": [{"message": why}]})


class ServiceUnavailable(ApiError):
    code, reason = 503, "ServiceUnavailable"


class Timeout(ApiError):
    code, reason = 504, "Timeout"

    @classmethod
    def too_new(cls, asked: int, current: int) -> Timeout:
        cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        return cls(f"Timeout: Too large resource version: {asked}, current: {current}",
                   {"causes": [cause], "retryAfterSeconds": 1})


_BY_REASON: dict[str, type[ApiError]] = {c.reason: c for c in (
    BadRequest, Unauthorized, Forbidden, NotFound, MethodNotAllowed, NotAcceptable, AlreadyExists, Conflict, Expired,
    TooLarge, UnsupportedMediaType, Invalid, TooManyRequests, InternalError, ServiceUnavailable, Timeout)}
_BY_CODE: dict[int, type[ApiError]] = {400: BadRequest, 401: Unauthorized, 403: Forbidden, 404: NotFound,
    405: MethodNotAllowed, 406: NotAcceptable, 409: Conflict, 410: Expired, 413: TooLarge, 415: UnsupportedMediaType,
    422: Invalid, 429: TooManyRequests, 503: ServiceUnavailable, 504: Timeout}


def from_status(status: dict[str, Any], http_code: int = 0) -> ApiError:
    """The error a server's Status stands for; an unknown reason keeps its code and reason in a plain ApiError."""
    code = int(status.get("code") or http_code or 500)
    reason = status.get("reason") or ""
    kind = _BY_REASON.get("Expired" if reason == "Gone" else reason) or _BY_CODE.get(code) or ApiError
    return kind(status.get("message") or reason or f"HTTP {code}", status.get("details"), code=code,
                reason=reason or kind.reason, continue_token=(status.get("metadata") or {}).get("continue", ""))


# --- field errors, worded as upstream's field package words them ---------------------------------------------------

def _shown(value: Any) -> str:
    if isinstance(value, str) and value.isprintable() and '"' not in value and "\\" not in value:
        return f'"{value}"'
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    import json
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def invalid(field: str, value: Any, why: str) -> Cause:
    return Cause("FieldValueInvalid", f"Invalid value: {_shown(value)}: {why}", field)


def required(field: str, why: str = "") -> Cause:
    return Cause("FieldValueRequired", "Required value" + (f": {why}" if why else ""), field)


def duplicate(field: str, value: Any) -> Cause:
    return Cause("FieldValueDuplicate", f"Duplicate value: {_shown(value)}", field)


def forbidden(field: str, why: str) -> Cause:
    return Cause("FieldValueForbidden", f"Forbidden: {why}", field)


def not_found(field: str, value: Any) -> Cause:
    return Cause("FieldValueNotFound", f"Not found: {_shown(value)}", field)


def not_supported(field: str, value: Any, supported: list[str] | tuple[str, ...], as_given: bool = False) -> Cause:
    """What is supported is listed by the alphabet, or in the order `as_given`."""
    listed = ", ".join(f'"{s}"' for s in (supported if as_given else sorted(supported)))
    return Cause("FieldValueNotSupported", f"Unsupported value: {_shown(value)}: supported values: {listed}", field)


def too_long(field: str, limit: int) -> Cause:
    return Cause("FieldValueTooLong", f"Too long: may not be more than {limit} bytes", field)


def too_many(field: str, actual: int, limit: int) -> Cause:
    return Cause("FieldValueTooMany", f"Too many: {actual}: must have at most {limit} items", field)


def type_invalid(field: str, value: Any, why: str) -> Cause:
    return Cause("FieldValueTypeInvalid", f"Invalid value: {_shown(value)}: {why}", field)


IMMUTABLE = "field is immutable"

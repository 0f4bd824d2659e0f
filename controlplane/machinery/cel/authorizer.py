"""CEL's `authorizer`: may somebody do something, asked from inside an expression.

Owns the chain of calls (`authorizer.group("apps").resource("deployments").namespace("d").check("create").allowed()`) as
plain maps that gather the question; whoever evaluates the expression answers it, through `asking`. Nothing is decided
here. Pure but for that one call. Called by `library`, which declares the functions, and by admission.

Upstream: k8s.io/apiserver/pkg/cel/library/authz.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Question = dict[str, Any]
Answer = Callable[[Question], tuple[bool, str]]  # a gathered question -> (allowed, reason)
_KEY = "authorizer"
_ask: ContextVar[Answer | None] = ContextVar("authorizer", default=None)


@contextmanager
def asking(answer: Answer) -> Iterator[None]:
    """Questions of expressions evaluated inside are answered by `answer`."""
    token = _ask.set(answer)
    try:
        yield
    finally:
        _ask.reset(token)


def start(**user: Any) -> dict[str, Question]:
    """The value of the variable `authorizer` for a user."""
    return {_KEY: {"user": user}}


def resource(of: Question, **about: Any) -> dict[str, Question]:
    """The value of `authorizer.requestResource`: a question that names its resource already."""
    return {_KEY: {**of[_KEY], **about}}


def _with(field: str) -> Callable[[Any, str], Any]:
    def step(value: Any, text: str) -> Any:
        return {_KEY: {**value[_KEY], field: text}}
    return step


def _account(value: Any, namespace: str, name: str) -> Any:
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    return {_KEY: {**value[_KEY], "user": {"name": f"system:serviceaccount:{namespace}:{name}", "groups": groups}}}


def _check(value: Any, verb: str) -> Any:
    answer = _ask.get()
    if answer is None:
        raise ValueError("no authorizer is available here")
    allowed, reason = answer({**value[_KEY], "verb": verb})
    return {"decision": {"allowed": allowed, "reason": reason}}


def rows(t: Any) -> list[tuple[str, Any, list[Any], bool, Callable[..., Any]]]:
    """Name, result, arguments, member and function of each overload; `t` is the library's Type."""
    dyn, text, flag = t.DYN, t.STRING, t.BOOL
    steps = {"path": "path", "group": "group", "resource": "resource", "subresource": "subresource",
             "namespace": "namespace", "name": "name", "fieldSelector": "fields", "labelSelector": "labels"}
    return [*((name, dyn, [dyn, text], True, _with(field)) for name, field in steps.items()),
            ("serviceAccount", dyn, [dyn, text, text], True, _account), ("check", dyn, [dyn, text], True, _check),
            ("allowed", flag, [dyn], True, lambda v: bool(v["decision"]["allowed"])),
            ("reason", text, [dyn], True, lambda v: str(v["decision"]["reason"])),
            ("errored", flag, [dyn], True, lambda v: False), ("error", text, [dyn], True, lambda v: "")]

"""Why a request was refused: which rule is missing, which field is wrong and how it would be right.

Owns the memory's form of a refusal (`entry`), the smallest role that would allow a denied request and the corrected
YAML of a rejected field. Pure; the memory itself is `why`'s. Registered for every kind: the explanation of an object
includes refusals of requests about it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from controlplane.apiserver.explain import MAX_FOLLOWED, Object, World, explains
from controlplane.machinery import schema
from controlplane.machinery.errors import ApiError, Finding
from controlplane.machinery.resources import Resource

_DENIED = re.compile(r'User "[^"]*" cannot \S+ (?:resource|path) ')
_UNKNOWN = re.compile(r'unknown field "([^"]+)"')
_SUPPORTED = re.compile(r"Unsupported value: (.*?): supported values: (.*)$", re.S)
_VALUE = re.compile(r'Invalid value: "([^"]*)"')
MADE_PODS = {"ReplicaSet", "ReplicationController", "StatefulSet", "DaemonSet", "Job"}
HIDDEN = "a value of a Secret"
MAX_MESSAGE = 2000  # characters remembered of one message


def entry(user: str, verb: str, resource: Resource | None, subresource: str, namespace: str, name: str, path: str,
          error: ApiError, time: str) -> Object:
    """A refusal as it is remembered. Of Secrets no message is kept that quotes a value."""
    causes = [{"field": c.field, "message": c.message, "reason": c.reason} for c in error.causes if c.field]
    message = error.message[:MAX_MESSAGE]
    if resource is not None and resource.name == "secrets" and error.http_code in (400, 422):
        causes = [{**c, "message": HIDDEN} for c in causes]
        message = "invalid: " + ", ".join(c["field"] for c in causes)
    return {"time": time, "count": 1, "user": user, "verb": verb, "resource": resource.name if resource else "",
            "kind": resource.kind if resource else "", "definition": resource.definition if resource else "",
            "subresource": subresource, "namespace": namespace,
            "name": name or str((error.details or {}).get("name") or ""), "path": path, "code": error.http_code,
            "reason": error.status_reason, "message": message, "causes": causes[:MAX_FOLLOWED * 3]}


@explains("*")
def about(obj: Object, world: World) -> Iterator[Finding]:
    """Remembered refusals about an object, or about the pods a workload tried to make."""
    metadata, resource = obj["metadata"], obj.get("_resource", "")
    namespace = metadata.get("namespace", "")
    known = [*world.refusals(resource, namespace, metadata.get("name", ""))]
    if obj.get("kind") in MADE_PODS:
        known += [r for r in world.refusals("pods", namespace) if r["verb"] == "create"
                  and r["name"].startswith(metadata["name"] + "-")]
    for refusal in known[:MAX_FOLLOWED]:
        yield from explain(refusal)


def explain(refusal: Object) -> Iterator[Finding]:
    """The findings of one refusal."""
    if refusal["code"] == 403 and _DENIED.search(refusal["message"]):
        yield denied(refusal)
    elif refusal["causes"] and refusal["code"] == 422:
        for cause in refusal["causes"]:
            yield rejected(refusal, cause)
    elif unknown := _UNKNOWN.findall(refusal["message"]):
        for path in unknown:
            yield misspelt(refusal, path)
    else:
        yield Finding(_fact(refusal), refusal["message"], "")


def _fact(refusal: Object) -> str:
    what = refusal["resource"] + (f"/{refusal['subresource']}" if refusal["subresource"] else "") or refusal["path"]
    place = "/".join(p for p in (refusal["namespace"], refusal["name"]) if p)
    times = f" ({refusal['count']} times)" if refusal["count"] > 1 else ""
    return f"{refusal['user']} could not {refusal['verb']} {what}{' ' + place if place else ''}{times}"


# --- permissions -------------------------------------------------------------------------------------------------


def denied(refusal: Object) -> Finding:
    """What role and binding would allow it."""
    user, name = refusal["user"], _role_name(refusal)
    namespaced = bool(refusal["namespace"])
    kind = "role" if namespaced else "clusterrole"
    place = f" -n {refusal['namespace']}" if namespaced else ""
    if refusal["resource"]:
        what = refusal["resource"] + (f"/{refusal['subresource']}" if refusal["subresource"] else "")
        plural, _, group = refusal["resource"].partition(".")
        full = plural + what.removeprefix(refusal["resource"])
        rule = f'verb {refusal["verb"]} of {full} in API group "{group}"'
        made = f"kubectl create {kind} {name} --verb={refusal['verb']} --resource={what}{place}"
    else:
        rule = f"verb {refusal['verb']} of the path {refusal['path']}"
        made = f"kubectl create clusterrole {name} --verb={refusal['verb']} --non-resource-url={refusal['path']}"
    if user.startswith("system:serviceaccount:"):
        subject = "--serviceaccount=" + user.removeprefix("system:serviceaccount:")
    else:
        subject = f"--user={user}"
    binding = f"kubectl create {kind}binding {name} --{kind}={name} {subject}{place}"
    return Finding(_fact(refusal), f"no rule bound to {user} has {rule}", f"{made} && {binding}")


def _role_name(refusal: Object) -> str:
    who = refusal["user"].rpartition(":")[2]
    what = refusal["resource"].partition(".")[0] or "path"
    return re.sub(r"[^a-z0-9-]+", "-", f"{who}-{refusal['verb']}-{what}".lower()).strip("-")


# --- fields ------------------------------------------------------------------------------------------------------


def rejected(refusal: Object, cause: Object) -> Finding:
    """A field that broke a rule, and the YAML that would not."""
    path, message = cause["field"], cause["message"]
    value, note = suggestion(message)
    fix = f"remove {path}" if message.startswith(("Forbidden", "Duplicate")) else \
        "for example\n" + yaml_at(path, value)
    if "immutable" in message:
        fix = f"delete the object and create it anew with another {path}, or leave that field as it was"
    return Finding(_fact(refusal), f"{path}: {message}", fix + (f"\n{note}" if note else ""))


def suggestion(message: str) -> tuple[Any, str]:
    """A value the rule of a message accepts, as far as it can be told, and what to know about it."""
    if found := _SUPPORTED.search(message):
        wrong, listed = found.groups()
        choices = re.findall(r'"([^"]*)"', listed)
        near = difflib.get_close_matches(wrong.strip('"').lower(), [c.lower() for c in choices], 1, 0.3)
        return next((c for c in choices if near and c.lower() == near[0]), choices[0] if choices else "<value>"), ""
    given = _VALUE.search(message)
    if given and ("RFC 1123" in message or "RFC 1035" in message):
        text = re.sub(r"[^a-z0-9.-]+", "-", given.group(1).lower()).strip("-.")
        if "label" in message or "RFC 1035" in message:
            text = text.replace(".", "-")
        return text or "name", ""
    if bounds := re.search(r"between (\d+) and (\d+)", message):
        return int(bounds.group(1)), f"any number from {bounds.group(1)} to {bounds.group(2)}"
    if least := re.search(r"greater than or equal to (\d+)", message):
        return int(least.group(1)), ""
    if "must be less than or equal to" in message and "limit" in message:
        return "<at most the limit>", ""
    return "<value>", ""


def misspelt(refusal: Object, path: str) -> Finding:
    """A field that does not exist, and the one that was meant."""
    near = nearest(refusal["definition"], path)
    return Finding(_fact(refusal), f"there is no field {path}",
                   f"write {near} instead" if near else f"remove {path}; kubectl explain shows what there is")


def nearest(definition: str, path: str) -> str:
    """The existing path most like `path`: its last part by spelling, "" when nothing is close."""
    schemas = schema.load()
    if definition not in schemas:
        return ""
    *parents, last = re.sub(r"\[\d+\]", "", path).split(".")
    node = schemas.definition(definition)
    for part in parents:
        node = schemas.resolve((node.get("properties") or {}).get(part) or {})
        while "items" in node:
            node = schemas.resolve(node["items"])
    here = difflib.get_close_matches(last, list(node.get("properties") or {}), 1, 0.6)
    if here:
        return path.rpartition(".")[0] + ("." if parents else "") + here[0]
    top = schemas.definition(definition).get("properties") or {}
    spec = schemas.resolve(top.get("spec") or {}).get("properties") or {}
    return f"spec.{last}" if last in spec and not parents else ""


def yaml_at(path: str, value: Any) -> str:
    """Nested YAML that sets `spec.containers[0].image` and nothing else; list positions are told in comments."""
    lines, indent, lead = [], "  ", ""
    parts = _parts(path)
    for index, (name, position) in enumerate(parts):
        end = f" {_scalar(value)}" if index == len(parts) - 1 and position is None else ""
        lines.append(f"{indent}{lead}{name}:{end}")
        indent, lead = indent + " " * len(lead), ""
        if position is None:
            indent += "  "
        elif index == len(parts) - 1:
            lines.append(f"{indent}- {_scalar(value)}")
        else:
            lead = "- "
            if position:
                lines.append(f"{indent}# entry {position + 1}")
    return "\n".join(lines)


def _parts(path: str) -> list[tuple[str, int | None]]:
    found: list[tuple[str, int | None]] = []
    for part in re.findall(r"[^.\[]+(?:\[[^\]]*\])?", path):
        name, _, position = part.partition("[")
        digits = position.rstrip("]")
        found.append((name, int(digits) if digits.isdigit() else None))
        if digits and not digits.isdigit():
            found.append((digits, None))
    return found


def _scalar(value: Any) -> str:
    return str(value)

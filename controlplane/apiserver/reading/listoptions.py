"""Which options of a list or a watch go together, and what a resourceVersion and a continue token say.

Owns upstream's rules and its words for `resourceVersion`, `resourceVersionMatch`, `continue` and `sendInitialEvents`.
Pure. Called by `lists`, which deletes of collections share, and by `watch`, before anything is read.

Upstream: k8s.io/apimachinery/pkg/apis/meta/internalversion/validation, k8s.io/apiserver/pkg/storage/continue.go.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

import orjson

from controlplane.apiserver.request import Query
from controlplane.machinery.errors import BadRequest, Cause, Invalid, forbidden, invalid
from controlplane.machinery.resources import Resource

TOKEN_VERSION = "meta.k8s.io/v1"
EXACT, NOT_OLDER = "Exact", "NotOlderThan"
_NUMBER = re.compile(r"[0-9]+", re.ASCII).fullmatch
_MATCH = "resourceVersionMatch"
_BAD_KEY = "invalid continue token: continue key is not valid"


def check(query: Query, watch: bool) -> None:
    """Raises Invalid for options that do not go together."""
    found = _of_watch(query) if watch else _of_list(query)
    if found:
        raise Invalid.of("ListOptions", "", found, "meta.k8s.io")


def _of_list(query: Query) -> list[Cause]:
    match, found = query.get(_MATCH), []
    if match:
        if not query.get("resourceVersion"):
            found.append(forbidden(_MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided"))
        if query.get("continue"):
            found.append(forbidden(_MATCH, "resourceVersionMatch is forbidden when continue is provided"))
        if match not in (EXACT, NOT_OLDER):
            found.append(_unsupported(match, f'"{EXACT}", "{NOT_OLDER}", ""'))
        if match == EXACT and query.get("resourceVersion") == "0":
            found.append(forbidden(_MATCH, 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'))
    if "sendInitialEvents" in query:
        found.append(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"))
    return found


def _of_watch(query: Query) -> list[Cause]:
    match, initial, found = query.get(_MATCH), "sendInitialEvents" in query, []
    if initial and match != NOT_OLDER:
        found.append(forbidden(_MATCH, f"sendInitialEvents requires setting resourceVersionMatch to {NOT_OLDER}"))
    if match:
        if not initial:
            found.append(forbidden(_MATCH, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is "
                                   "provided"))
        if match != NOT_OLDER:
            found.append(_unsupported(match, f'"{NOT_OLDER}"'))
        if query.get("continue"):
            found.append(forbidden(_MATCH, "resourceVersionMatch is forbidden when continue is provided"))
    return found


def _unsupported(match: str, listed: str) -> Cause:
    return Cause("FieldValueNotSupported", f'Unsupported value: "{match}": supported values: {listed}', _MATCH)


# --- revisions -------------------------------------------------------------------------------------------------------

def _revision(text: str) -> int | Cause:
    if not _NUMBER(text):
        return invalid("resourceVersion", text, f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) >= 1 << 64:
        return invalid("resourceVersion", text, f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def revision_to_read(text: str) -> int:
    """A read's resourceVersion. Raises BadRequest."""
    found = _revision(text) if text else 0
    if isinstance(found, Cause):
        raise BadRequest(f"invalid resource version: {found}")
    return found


def revision_to_watch(text: str, resource: Resource) -> int:
    """A watch's resourceVersion. Raises Invalid."""
    found = _revision(text) if text else 0
    if isinstance(found, Cause):
        raise Invalid.of(resource.plural, "", [found], resource.group)
    return found


@dataclass(frozen=True, slots=True)
class Token:
    """A continue token: the revision of the list (-1 = whatever is newest) and the key to go on behind."""

    revision: int
    after: str

    def encode(self) -> str:
        raw = orjson.dumps({"v": TOKEN_VERSION, "rv": self.revision, "start": self.after + "\u0000"})
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str, prefix: str) -> Token:
        """Raises BadRequest; a token of another collection is one too."""
        try:
            raw = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            version, revision, start = raw.get("v", ""), raw.get("rv", 0), raw.get("start", "")
        except (ValueError, AttributeError) as error:
            raise BadRequest(f"{_BAD_KEY}: {error}") from None
        if version != TOKEN_VERSION:
            raise BadRequest(f"{_BAD_KEY}: server does not recognize this encoded version {version}")
        if not isinstance(revision, int) or revision == 0:
            raise BadRequest(f"{_BAD_KEY}: incorrect encoded start resourceVersion (version {TOKEN_VERSION})")
        if not isinstance(start, str) or not start:
            raise BadRequest(f"{_BAD_KEY}: encoded start key empty (version {TOKEN_VERSION})")
        after = start.removesuffix("\u0000")
        if not after.startswith(prefix):
            raise BadRequest(f"{_BAD_KEY}: {start}")
        return cls(revision, after)

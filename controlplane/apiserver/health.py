"""Is the server well, and which one is it: `/healthz`, `/livez`, `/readyz`, `/version`, `/metrics`, `/metrics/slis`.

Owns the named checks and the wording probes and people read. A check is a function that returns "" or the reason it
fails; whoever owns the thing adds one with `add`. `readyz` also fails while the server drains, so that load balancers
leave before it stops. Reasons are never told to the caller, who may be anonymous; they go to the log. Called by the
server for paths that are no resource paths.

Upstream: k8s.io/apiserver/pkg/server/healthz.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from functools import cache

from controlplane.apiserver.context import Context
from controlplane.apiserver.metrics import Metrics
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import Response, json_response
from controlplane.machinery.errors import MethodNotAllowed

GIT_VERSION = "v1.36.0+pelamis.0.1"  # a valid semantic version: clients parse it and compare minor versions
ENDPOINTS = ("healthz", "livez", "readyz")
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
Check = Callable[[], str]

log = logging.getLogger(__name__)


@cache
def version() -> dict[str, str]:
    """The body of `/version`: a `version.Info`."""
    return {"major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1",
            "minCompatibilityMinor": "35", "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": f"python{platform.python_version()}",
            "compiler": platform.python_implementation().lower(),
            "platform": f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}"}


class Health:
    """Answers the health paths; `metrics` is what the server feeds."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.metrics = Metrics(context.clock)
        self._checks: dict[str, tuple[Check, tuple[str, ...]]] = {}
        self._outcomes: dict[tuple[str, str, str], int] = {}  # name, endpoint, how it ended -> how often
        self.add("ping", lambda: "")
        self.add("shutdown", lambda: "the server is stopping" if context.draining else "", ("readyz",))

    def add(self, name: str, check: Check, endpoints: tuple[str, ...] = ENDPOINTS) -> None:
        """Let `check` count for the given endpoints. It must not block."""
        self._checks[name] = (check, endpoints)

    async def handle(self, request: Request) -> Response | None:
        path = request.path.rstrip("/")
        endpoint, _, single = path[1:].partition("/")
        known = endpoint in ENDPOINTS or path in ("/version", "/metrics", "/metrics/slis")
        if not known:
            return None
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed
        if path == "/version":
            return json_response(version())
        if path == "/metrics":
            return Response(200, (await self.metrics.render()).encode(), EXPOSITION)
        if path == "/metrics/slis":
            return Response(200, self._levels().encode(), EXPOSITION)
        if single:
            return self._single(endpoint, single)
        return self._all(endpoint, request.query.all("exclude"), "verbose" in request.query)

    def _ask(self, endpoint: str, name: str, check: Check) -> str:
        """Why a check fails, "" when it does not; counted and logged."""
        why = check()
        outcome = (name, endpoint, "error" if why else "success")
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + 1
        if why:
            log.warning("%s check %s failed: %s", endpoint, name, why)
        return why

    def _levels(self) -> str:
        """How each check stands now, and how it stood whenever it was asked, as Prometheus reads it."""
        now = [f'kubernetes_healthcheck{{name="{name}",type="{endpoint}"}} {int(not self._ask(endpoint, name, check))}'
               for name, (check, endpoints) in self._checks.items() for endpoint in endpoints]
        counted = [f'kubernetes_healthchecks_total{{name="{name}",status="{status}",type="{endpoint}"}} {count}'
                   for (name, endpoint, status), count in sorted(self._outcomes.items())]
        return "\n".join(["# HELP kubernetes_healthcheck This metric records the result of a single healthcheck.",
                          "# TYPE kubernetes_healthcheck gauge", *now,
                          "# HELP kubernetes_healthchecks_total This metric records the results of all healthcheck.",
                          "# TYPE kubernetes_healthchecks_total counter", *counted, ""])

    def _single(self, endpoint: str, name: str) -> Response | None:
        check, endpoints = self._checks.get(name, (None, ()))
        if check is None or endpoint not in endpoints:
            return None
        if why := self._ask(endpoint, name, check):
            return _text(f"internal server error: {why}", 500)
        return _text("ok")

    def _all(self, endpoint: str, exclude: list[str], verbose: bool) -> Response:
        lines: list[str] = []
        failed = []
        mine = {n: check for n, (check, endpoints) in self._checks.items() if endpoint in endpoints}
        for name, check in mine.items():
            if name in exclude:
                lines.append(f"[+]{name} excluded: ok")
            elif self._ask(endpoint, name, check):
                lines.append(f"[-]{name} failed: reason withheld")
                failed.append(name)
            else:
                lines.append(f"[+]{name} ok")
        if unknown := [n for n in exclude if n not in mine]:
            names = ", ".join(f'"{n}"' for n in unknown)
            lines.append(f"warn: some health checks cannot be excluded: no matches for {names}")
        if failed:
            return _text("\n".join([*lines, f"{endpoint} check failed", ""]), 500)
        return _text("\n".join([*lines, f"{endpoint} check passed", ""]) if verbose else "ok")


def _text(text: str, status: int = 200) -> Response:
    return Response(status, text.encode(), "text/plain; charset=utf-8", [("X-Content-Type-Options", "nosniff")])

"""Whom to ask about names that are not the cluster's.

Owns the choice of servers: the host's real resolvers (never systemd-resolved's stub while the file behind it names
them, never ourselves, or a question would go round for ever) and the stub domains of the ConfigMap
`kube-system/kube-dns`: `stubDomains`, a JSON object of domain to addresses, and `upstreamNameservers`, a JSON list that
takes the place of the host's resolvers. Files are read again when they have changed, and only when somebody asks.

Called by `forward` for each question it has no kept reply to.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from agent.dns import names

log = logging.getLogger(__name__)
RESOLV_FILES = ("/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf", "/etc/resolv.conf")
STUBS = ("127.0.0.53", "127.0.0.54")  # systemd-resolved's: it may be told to ask us
SERVER_LIMIT = 3  # as every resolver has it
LOOK_SECONDS = 5.0  # between looks at the files: a changed network is noticed within a few questions
PORT = 53

Server = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Config:
    """What the ConfigMap says; empty without one."""

    stubs: Mapping[names.Labels, tuple[Server, ...]] = field(default_factory=dict)
    servers: tuple[Server, ...] = ()


def server(text: str) -> Server:
    """`10.0.0.1`, `10.0.0.1:5353`, `[::1]:53` or `::1`. Raises ValueError."""
    text = text.strip()
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    else:
        address, port = text, ""
    return str(ipaddress.ip_address(address)), int(port or PORT)


def read_config(data: Mapping[str, str]) -> tuple[Config, list[str]]:
    """The ConfigMap's data, and what is wrong with it: a wrong entry is left out, the rest counts."""
    problems: list[str] = []

    def load(key: str, kind: type) -> object:
        try:
            found = json.loads(data.get(key) or "null")
        except ValueError as error:
            problems.append(f"{key} is not JSON: {error}")
            return kind()
        if found is not None and not isinstance(found, kind):
            problems.append(f"{key} must be a JSON {'object' if kind is dict else 'list'}")
        return found if isinstance(found, kind) else kind()

    def servers(texts: object, where: str) -> tuple[Server, ...]:
        made = []
        for text in texts if isinstance(texts, list) else [texts]:
            try:
                made.append(server(str(text)))
            except ValueError as error:
                problems.append(f"{where}: {error}")
        return tuple(made[:SERVER_LIMIT])

    domains, fixed = load("stubDomains", dict), load("upstreamNameservers", list)
    assert isinstance(domains, dict)
    stubs = {names.labels(domain): servers(texts, f"stubDomains {domain}") for domain, texts in domains.items()}
    return Config({d: s for d, s in stubs.items() if d and s}, servers(fixed, "upstreamNameservers")), problems


def nameservers(text: str) -> list[str]:
    """The addresses of a resolv.conf, without those that are no addresses."""
    found = []
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                ipaddress.ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            found.append(words[1])
    return found


def choose(files: Iterable[str], own: Iterable[str]) -> tuple[Server, ...]:
    """The servers from the texts of the files, the best file first: the first that names real ones counts."""
    refused, stubs = set(own), False
    for text in files:
        named = nameservers(text)
        stubs = stubs or any(a in STUBS for a in named)
        real = [a for a in named if a not in refused and a not in STUBS]
        if real:
            return tuple((a, PORT) for a in real[:SERVER_LIMIT])
    return ((STUBS[0], PORT),) if stubs else ()  # a stub is better than nobody


class Upstreams:
    """The servers for a name, as things are now. `own`: the addresses we answer on."""

    def __init__(self, monotonic: Callable[[], float], own: Callable[[], Iterable[str]],
                 files: tuple[str, ...] = RESOLV_FILES) -> None:
        self._monotonic, self._own, self._files = monotonic, own, files
        self.config = Config()
        self._looked = float("-inf")
        self._marks: tuple[object, ...] = ()
        self._servers: tuple[Server, ...] = ()

    def for_name(self, name: names.Labels) -> tuple[Server, ...]:
        """The stub domain's that fits longest, else the general ones; () when there is nobody to ask."""
        if self.config.stubs:
            for start in range(len(name)):
                if name[start:] in self.config.stubs:
                    return self.config.stubs[name[start:]]
        return self.config.servers or self._host()

    def _host(self) -> tuple[Server, ...]:
        now = self._monotonic()
        if now - self._looked < LOOK_SECONDS:
            return self._servers
        self._looked = now
        own = frozenset(self._own())
        marks = (own, *(_mark(path) for path in self._files))
        if marks != self._marks:
            self._marks = marks
            self._servers = choose((_read(path) for path in self._files), own)
            log.info("names outside the cluster are asked of %s",
                     ", ".join(a for a, _ in self._servers) or "nobody: the host has no resolvers")
        return self._servers


def _mark(path: str) -> object:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns, state.st_size


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""

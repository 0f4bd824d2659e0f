"""Which group-versions other servers serve, as the stored APIServices say.

Owns the look-up every request makes while there are any such servers, kept current by the watch cache itself, and what
each server said last about its kinds. `changes` counts everything documents are made of. Reads only. Called by the
pipeline by way of the aggregator, and by all of this package.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from controlplane.apiserver.services.servicebackends import SERVICE_LABEL, SLICES
from controlplane.machinery import apiservices
from controlplane.machinery.resources import named
from controlplane.store.cache import Cache, prefix_of

if TYPE_CHECKING:
    from controlplane.store.item import Event

RESOURCE = named("apiservices.apiregistration.k8s.io")
PREFIX = prefix_of(RESOURCE.name)
Object = dict[str, Any]
GroupVersion = tuple[str, str]


@dataclass(eq=False)
class Remote:
    """Another server of one group-version. `resources` is what its discovery listed, None before it was asked; `v3` the
    URL of its OpenAPI document, "" when it has none; `translated` says that it is made from its v2 document. `look`
    asks for its availability to be judged anew."""

    name: str
    spec: Object
    available: bool = False
    resources: list[Object] | None = None
    v3: str = ""
    translated: bool = False
    look: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def group_version(self) -> GroupVersion:
        return self.spec["group"], self.spec["version"]

    @property
    def path(self) -> str:
        return f"/apis/{self.spec['group']}/{self.spec['version']}"

    @property
    def service(self) -> tuple[str, str, int]:
        """Namespace, name and port."""
        service = self.spec["service"]
        return service.get("namespace") or "", service.get("name") or "", service.get("port") or apiservices.PORT

    @property
    def host(self) -> str:
        """The name its certificate must carry."""
        namespace, name, _ = self.service
        return f"{name}.{namespace}.svc"


class Remotes:
    """By group-version; `came` is set when one has come or gone."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._known: dict[GroupVersion, Remote] = {}
        self.changes = 0
        self.came = asyncio.Event()

    def load(self) -> None:
        """Read what is stored, and follow it from now on."""
        self._cache.observe(PREFIX, self._changed)
        self._cache.observe(prefix_of("services"), self._service_changed)
        self._cache.observe(prefix_of(SLICES), self._slice_changed)
        for item in self._cache.list(PREFIX):
            self._put(item.obj)

    def __iter__(self) -> Any:
        return iter(list(self._known.values()))

    def __len__(self) -> int:
        return len(self._known)

    def get(self, group: str, version: str) -> Remote | None:
        return self._known.get((group, version))

    def at(self, path: str) -> Remote | None:
        """The server of a URL path, None when that is this one."""
        if not self._known or not path.startswith("/apis/"):
            return None
        parts = path.split("/", 4)
        return self._known.get((parts[2], parts[3])) if len(parts) > 3 else None

    def learn(self, remote: Remote, resources: list[Object] | None, v3: str, translated: bool) -> None:
        """What a server now says about itself."""
        if (resources, v3, translated) != (remote.resources, remote.v3, remote.translated):
            remote.resources, remote.v3, remote.translated = resources, v3, translated
            self.changes += 1

    # --- kept by the cache -----------------------------------------------------------------------------------------

    def _changed(self, event: Event) -> None:
        if event.kind == "DELETED":
            self._drop(event.item.obj["metadata"]["name"])
        else:
            self._put(event.item.obj)

    def _put(self, obj: Object) -> None:
        name = obj["metadata"]["name"]
        if not apiservices.remote(obj):
            self._drop(name)
            return
        available = apiservices.available(obj)
        known = next((r for r in self._known.values() if r.name == name), None)
        if known is None or known.group_version != (obj["spec"]["group"], obj["spec"]["version"]):
            self._drop(name)
            made = Remote(name, obj["spec"], available)
            self._known[made.group_version] = made
            self.came.set()
        elif known.available != available or known.spec != obj["spec"]:
            if known.spec != obj["spec"]:
                known.look.set()
            known.spec, known.available = obj["spec"], available
        else:
            return
        self.changes += 1

    def _drop(self, name: str) -> None:
        for group_version, remote in list(self._known.items()):
            if remote.name == name:
                del self._known[group_version]
                remote.look.set()
                self.changes += 1

    def _service_changed(self, event: Event) -> None:
        if self._known:
            self._look(event.item.key.split("/")[1:])

    def _slice_changed(self, event: Event) -> None:
        if self._known:
            self._look([event.item.key.split("/")[1], event.item.labels.get(SERVICE_LABEL, "")])

    def _look(self, service: list[str]) -> None:
        for remote in self._known.values():
            if list(remote.service[:2]) == service:
                remote.look.set()

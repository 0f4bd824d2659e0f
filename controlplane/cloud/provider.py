"""What a cloud must answer for the cluster to use it: machines, routes, load balancers.

Owns the interface and the choice of who answers. Without a cloud (`""`) nodes tell their own addresses and find their
own routes, and `lab` gives load balancers addresses of pools. `external` means that a cloud-controller-manager from
elsewhere does all of it: agents started with `--cloud-provider=external` register tainted as uninitialized, and nothing
of ours touches what is the cloud's. `package.module:name` names a provider in Python: a callable without arguments that
gives a `Provider`, any part of which may be None.

Called by `controllers.manager`, which runs `balancers`, `cloudnodes` and `cloudroutes` for the parts there are.
Upstream: k8s.io/cloud-provider/cloud.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from controlplane.cloud.lab import Lab
from controlplane.machinery.errors import Finding

Obj = dict[str, Any]
EXTERNAL = "external"


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the cloud knows of a machine. `addresses`: (type, address), as in a Node's status."""

    provider_id: str
    addresses: tuple[tuple[str, str], ...] = ()
    instance_type: str = ""
    zone: str = ""
    region: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """Packets to `destination`, a range of pods, go to the machine of the node."""

    destination: str
    node: str


class Instances(Protocol):
    """Machines. Errors of the cloud are Findings or OSErrors: the question is asked again."""

    async def exists(self, node: Obj) -> bool:
        """Whether the node's machine is there, running or not."""

    async def is_shut_down(self, node: Obj) -> bool:
        """Whether it is there and switched off."""

    async def metadata(self, node: Obj) -> Metadata: ...


class Routes(Protocol):
    """The cloud's own routing between nodes' pods."""

    async def present(self) -> list[Route]:
        """The routes of this cluster."""

    async def create(self, route: Route) -> None: ...
    async def delete(self, route: Route) -> None: ...


class Balancers(Protocol):
    """`type: LoadBalancer`, for the Services that `handles` accepts."""

    def handles(self, service: Obj) -> bool:
        """Whether the Service is this provider's to serve."""

    def ensure(self, service: Obj, others: Iterable[Obj]) -> list[Obj]:
        """The entries of `status.loadBalancer.ingress` the Service is to have; the same ones as long as it can keep
        them. `others`: every other Service. Raises Finding when there is none to give."""


@dataclass(frozen=True, slots=True)
class Provider:
    """The parts a cloud offers."""

    instances: Instances | None = None
    routes: Routes | None = None
    balancers: Balancers | None = None


def chosen(text: str) -> Provider:
    """The provider of `--cloud-provider`. Raises Finding when there is no such thing."""
    if not text:
        return Provider(balancers=Lab())
    if text == EXTERNAL:
        return Provider()
    module, _, name = text.partition(":")
    try:
        made = getattr(import_module(module), name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise Finding(f"there is no cloud provider {text}", str(error),
                      "give --cloud-provider=external, package.module:name, or leave it out") from error
    if not isinstance(made, Provider):
        raise Finding(f"{text} gives no cloud provider", f"it gives a {type(made).__name__}",
                      "return a controlplane.cloud.provider.Provider")
    return made

"""What a cloud must answer for the cluster to use it.

Owns the interface. Nodes tell their own addresses and find their own routes, so a balancer for Services is all there is
to provide; `lab` is the provider for hosts without a cloud. A cloud-controller-manager from elsewhere takes this
place by itself: without pools ours touches no Service, and Services that name a `loadBalancerClass` other than ours are
never ours.

Called by `controllers.balancers`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

Obj = dict[str, Any]


class Balancers(Protocol):
    """`type: LoadBalancer`, for the Services that `handles` accepts."""

    def handles(self, service: Obj) -> bool:
        """Whether the Service is this provider's to serve."""

    def ensure(self, service: Obj, others: Iterable[Obj]) -> list[Obj]:
        """The entries of `status.loadBalancer.ingress` the Service is to have; the same ones as long as it can keep
        them. `others`: every other Service. Raises Finding when there is none to give."""

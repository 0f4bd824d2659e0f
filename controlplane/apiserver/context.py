"""What the modules of one apiserver share.

Owns nothing itself: it is the bag the server fills at start and hands to the handlers and to the edge (discovery,
authentication, streams, …), so that none of them needs to import the server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.resources import BUILTIN, Registry

if TYPE_CHECKING:
    from controlplane.apiserver.config import Options
    from controlplane.store.cache import Cache


@dataclass(eq=False)
class Context:
    """`draining` is True from the moment a stop was asked for. `authorizer` and `aggregator` are set once they
    are made; `changes` is the change log, when one is kept."""

    options: Options
    cache: Cache
    registry: Registry = field(default_factory=lambda: BUILTIN)
    clock: Clock = SYSTEM
    authorizer: Any = None
    aggregator: Any = None
    changes: Any = None
    draining: bool = False

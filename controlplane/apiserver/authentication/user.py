"""Who somebody is: the identity that authentication ends with and everything after it reads.

Owns the form and the names of the groups that everybody is in. Called by `authn` and its kin.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
ANONYMOUS = "system:anonymous"
MASTERS = "system:masters"  # the group that may do everything, whatever the roles say


@dataclass(frozen=True, slots=True)
class User:
    """An identity: `groups` in order, `extra` maps keys to lists of values."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, list[str]] = field(default_factory=dict)

    def as_info(self) -> dict[str, Any]:
        """The authentication.k8s.io UserInfo."""
        info: dict[str, Any] = {"username": self.name}
        if self.uid:
            info["uid"] = self.uid
        if self.groups:
            info["groups"] = list(self.groups)
        if self.extra:
            info["extra"] = {k: list(v) for k, v in self.extra.items()}
        return info


ANYBODY = User(ANONYMOUS, groups=(UNAUTHENTICATED,))


def with_group(user: User, group: str) -> User:
    return user if group in user.groups else replace(user, groups=(*user.groups, group))

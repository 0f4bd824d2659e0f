"""Which address families a Service has: what its writer said, completed by what the cluster can give.

Pure, in place. Owns `ipFamilies` and `ipFamilyPolicy`, and cuts `clusterIPs` when a Service becomes single-stack;
choosing the addresses is the allocator's, which calls this first.

Upstream: k8s.io/kubernetes/pkg/registry/core/service/storage/alloc.go (initIPFamilyFields).
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.errors import Cause, invalid

FAMILIES = ("IPv4", "IPv6")
SINGLE, PREFER, REQUIRE = "SingleStack", "PreferDualStack", "RequireDualStack"
NONE = "None"
Object = dict[str, Any]


def family_of(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def settle(service: Object, old: Object | None, configured: tuple[str, ...]) -> list[Cause]:
    """Complete the families of a Service that is no ExternalName. `configured`: the cluster's, its own first.

    Returns upstream's complaints; with any of them the Service is not to be stored."""
    spec, before = service["spec"], (old or {}).get("spec") or {}
    if before.get("type") != "ExternalName" and _same_preference(spec, before):
        return []
    _cut(spec, before)
    if causes := _infer(spec, configured) or _too_many(spec):
        return causes
    families = spec.setdefault("ipFamilies", [])
    if spec.get("clusterIP") == NONE and not spec.get("selector"):
        # Whoever writes its endpoints by hand may write addresses of either family, whatever the cluster gives out.
        if not families:
            families.append(configured[0])
        policy = spec.setdefault("ipFamilyPolicy", REQUIRE)
        if policy != SINGLE and len(families) == 1:
            families.append(_other(families[0]))
        return []
    causes = []
    if spec.get("ipFamilyPolicy") == REQUIRE and len(configured) < 2:
        causes.append(invalid("spec.ipFamilyPolicy", REQUIRE, "this cluster is not configured for dual-stack services"))
    causes += [invalid(f"spec.ipFamilies[{index}]", family, "not configured on this cluster")
               for index, family in enumerate(families) if family not in configured]
    if causes:
        return causes
    if not families:
        families.append(configured[0])
    policy = spec.setdefault("ipFamilyPolicy", SINGLE)
    if policy != SINGLE and len(families) == 1 and _other(families[0]) in configured:
        families.append(_other(families[0]))
    return []


def _other(family: str) -> str:
    return FAMILIES[1 - FAMILIES.index(family)]


def _same_preference(spec: Object, before: Object) -> bool:
    """A Service that prefers two stacks stays as it is when the cluster has gained or lost one."""
    return bool(before) and spec.get("ipFamilyPolicy") == PREFER == before.get("ipFamilyPolicy") and \
        spec.get("clusterIPs") == before.get("clusterIPs") and spec.get("ipFamilies") == before.get("ipFamilies")


def _cut(spec: Object, before: Object) -> None:
    """Asking for one stack, and leaving the rest as it was, means: keep the first."""
    if not before or spec.get("ipFamilyPolicy") != SINGLE or before.get("ipFamilyPolicy") == SINGLE:
        return
    for field in ("clusterIPs", "ipFamilies"):
        if spec.get(field) == before.get(field):
            spec[field] = (spec.get(field) or [])[:1]


def _infer(spec: Object, configured: tuple[str, ...]) -> list[Cause]:
    """Addresses that were asked for tell their families."""
    causes, families, addresses = [], spec.setdefault("ipFamilies", []), spec.get("clusterIPs") or []
    for index, address in enumerate(addresses):
        if address == NONE:
            break
        family = family_of(address)
        if index < len(families):
            if families[index] != family:
                causes.append(invalid(f"spec.clusterIPs[{index}]", address, f"expected an {families[index]} value as "
                                      f"indicated by `ipFamilies[{index}]`"))
        elif family not in configured:
            causes.append(invalid(f"spec.clusterIPs[{index}]", addresses,
                                  f"may not use {family} on a cluster which is not configured for it"))
        else:
            families.append(family)
    if len(addresses) == 2 and not causes and family_of(addresses[0]) == family_of(addresses[1]):
        causes.append(invalid("spec.clusterIPs", addresses, "may specify no more than one IP for each IP family"))
    return causes


def _too_many(spec: Object) -> list[Cause]:
    policy = spec.get("ipFamilyPolicy")
    if policy in (PREFER, REQUIRE) or (spec.get("clusterIP") == NONE and not spec.get("selector") and not policy):
        return []
    many = [field for field in ("clusterIPs", "ipFamilies") if len(spec.get(field) or ()) > 1]
    return [invalid("spec.ipFamilyPolicy", policy, "must be RequireDualStack or PreferDualStack when multiple "
                    f"{field} are specified") for field in many]

"""Devices of ResourceClaims: prepared by their drivers before a pod's containers start, taken back when it has ended.

Owns the file `claims.json` in the folder of each pod that has some: what was prepared, so that it is taken back
whatever happens in between. Promises that a container gets the devices of the claims and requests it names and no
others, and that a claim is given back only when no other pod of this node has it. Called by `devices`, which loads it
with the first such pod, and by `podresources`.

Upstream: pkg/kubelet/cm/dra.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import orjson

from agent.kubelet.devices.drivers import ClaimDrivers
from agent.kubelet.devices.manager import NO_CDI
from agent.kubelet.env import ConfigError
from agent.kubelet.model import ContainerSpec
from agent.kubelet.specs import CLAIMS_FILE as FILE
from controlplane.client.rest import Client
from controlplane.machinery import files
from controlplane.machinery.errors import NotFound
from controlplane.machinery.resources import named
from cri_proto.client import Plugin, describe
from cri_proto.messages import dra

CLAIMS = named("resourceclaims.resource.k8s.io")
EXTENDED = ""  # what a pod calls the claim it does not know of
CALL_SECONDS = 45.0  # upstream's: preparing may partition a device
Object = dict[str, Any]


class ClaimDevices:
    """`pods` is the folder of pods' folders; `cdi` says whether the runtime knows CDI devices."""

    def __init__(self, client: Client, pods: Path, drivers: ClaimDrivers, *, cdi: bool) -> None:
        self._client, self._pods, self._drivers, self._cdi = client, pods, drivers, cdi
        self._ready: set[str] = set()  # uids of pods prepared since this process began
        self._noted: dict[str, list[Object]] = {}  # what is in their files
        self._busy = asyncio.Lock()  # one pod is prepared or given back at a time: claims may be shared

    async def fitted(self, made: ContainerSpec, pod: Object, container: Object) -> ContainerSpec:
        """The container with its claims' devices. Raises ConfigError or ApiError."""
        uid = pod["metadata"]["uid"]
        async with self._busy:
            if uid not in self._ready:
                try:
                    await self._prepare(pod)
                    self._ready.add(uid)
                except ConfigError as error:
                    raise ConfigError(f"Failed to prepare dynamic resources: {error}") from error
        names = chosen(entries(pod, container), self._kept(uid))
        if names and not self._cdi:
            raise ConfigError(NO_CDI)
        return replace(made, cdi=made.cdi + names)

    async def _prepare(self, pod: Object) -> None:
        """Have the pod's claims prepared by their drivers; what is asked of drivers is noted before."""
        claims = [await self._claim(pod, own, name) for own, name in claims_of(pod)]
        drivers = sorted({d for claim in claims for d in claim["drivers"]})
        for driver in drivers:
            self._place(driver)  # a pod that waits for one that never comes can still be deleted
        self._note(pod["metadata"]["uid"], claims)
        for driver in drivers:
            asked = [c for c in claims if driver in c["drivers"]]
            answers = await self._call(driver, "NodePrepareResources",
                                       dra.NodePrepareResourcesRequest(claims=map(_message, asked)))
            for claim in asked:
                claim["drivers"][driver] = [
                    {"requests": list(d.request_names), "pool": d.pool_name, "device": d.device_name,
                     "cdi": list(d.cdi_device_ids)} for d in answers[claim["uid"]].devices]
        self._note(pod["metadata"]["uid"], claims)

    async def _claim(self, pod: Object, own: str, name: str) -> Object:
        """What is known of a claim before its drivers have said anything. Raises ConfigError or ApiError."""
        namespace = pod["metadata"].get("namespace", "")
        try:
            found = await self._client.get(CLAIMS, name, namespace)
        except NotFound:
            raise ConfigError(f"failed to fetch ResourceClaim {name} referenced by pod {pod['metadata']['name']}: it "
                              "does not exist") from None
        status = found.get("status") or {}
        if not any(user.get("uid") == pod["metadata"]["uid"] for user in status.get("reservedFor") or ()):
            raise ConfigError(f"pod {pod['metadata']['name']}({pod['metadata']['uid']}) is not allowed to use "
                              f"ResourceClaim {name}({found['metadata']['uid']})")
        results = ((status.get("allocation") or {}).get("devices") or {}).get("results") or ()
        return {"own": own, "name": name, "namespace": namespace, "uid": found["metadata"]["uid"],
                "drivers": {result["driver"]: list[Object]() for result in results}}

    def _place(self, driver: str) -> str:
        found = self._drivers.socket(driver)
        if found is None:
            raise ConfigError(f"DRA driver {driver} is not registered on this node")
        return found

    async def _call(self, driver: str, method: str, request: Any) -> Any:
        """The answers by claim, each good. Raises ConfigError."""
        try:
            async with Plugin(self._place(driver)) as plugin:
                answers = (await getattr(plugin.claims, method)(request, timeout=CALL_SECONDS)).claims
        except grpc.aio.AioRpcError as error:
            raise ConfigError(f"{method} of DRA driver {driver} failed: {describe(error)}") from error
        for claim in request.claims:
            if claim.uid not in answers or answers[claim.uid].error:
                why = answers[claim.uid].error if claim.uid in answers else "it says nothing of it"
                raise ConfigError(f"{method} of DRA driver {driver} failed for claim {claim.namespace}/{claim.name}: "
                                  f"{why}")
        return answers

    # --- the end

    async def release(self, uid: str) -> None:
        """Give the pod's claims back to their drivers. Raises ConfigError; may be repeated."""
        async with self._busy:
            self._ready.discard(uid)
            self._noted.pop(uid, None)
            kept = {c["uid"] for other in self._pods.glob(f"*/{FILE}") if other.parent.name != uid
                    for c in read(other.parent)}
            for claim in read(self._pods / uid):
                for driver in sorted(claim["drivers"]) if claim["uid"] not in kept else ():
                    await self._call(driver, "NodeUnprepareResources",
                                     dra.NodeUnprepareResourcesRequest(claims=[_message(claim)]))
            (self._pods / uid / FILE).unlink(missing_ok=True)

    def _note(self, uid: str, claims: list[Object]) -> None:
        files.write(self._pods / uid / FILE, orjson.dumps(claims))
        self._noted[uid] = claims

    def _kept(self, uid: str) -> list[Object]:
        if uid not in self._noted:
            self._noted[uid] = read(self._pods / uid)
        return self._noted[uid]

    # --- how they are

    def holders(self, driver: str) -> set[str]:
        """uids of the pods that have devices of the driver."""
        return {uid for uid, claims in self._noted.items() if any(driver in c["drivers"] for c in claims)}

    def told(self, pod: Object) -> dict[str, list[Object]]:
        """How the devices of the claims are that each container names."""
        claims = self._kept(pod["metadata"]["uid"])
        found = {}
        for container in pod["spec"]["containers"]:
            listed = []
            for entry in entries(pod, container):
                devices: dict[str, Object] = {}
                for driver, device in named_devices(entry, claims):
                    word, message = self._drivers.health(driver, device["pool"], device["device"])
                    id = next(iter(device["cdi"]), f"{driver}/{device['pool']}/{device['device']}")
                    devices.setdefault(id, {"resourceID": id, "health": word,
                                            **({"message": message} if message else {})})
                name = entry.get("resource") or "/".join(filter(None, (f"claim:{entry['name']}", entry.get("request"))))
                listed += [{"name": name, "resources": list(devices.values())}] if devices else []
            if listed:
                found[container["name"]] = listed
        return found


def read(folder: Path) -> list[Object]:
    """What was prepared for the pod whose folder it is."""
    with contextlib.suppress(OSError, ValueError):
        found: list[Object] = orjson.loads((folder / FILE).read_bytes())
        return found
    return []


def claims_of(pod: Object) -> Iterator[tuple[str, str]]:
    """(what the pod calls it, name) of each claim; one whose template makes none has no name and is passed over. Raises
    ConfigError while a claim is not made yet. Pure."""
    made = {s["name"]: s.get("resourceClaimName") for s in (pod.get("status") or {}).get("resourceClaimStatuses") or ()}
    for entry in pod["spec"].get("resourceClaims") or ():
        name = entry.get("resourceClaimName") or made.get(entry["name"])
        if name:
            yield entry["name"], name
        elif entry["name"] not in made:
            raise ConfigError(f'ResourceClaim for "{entry["name"]}" of pod {pod["metadata"]["name"]} not created yet')
    if name := extended(pod).get("resourceClaimName"):
        yield EXTENDED, name


def extended(pod: Object) -> Object:
    """The claim that the scheduler made for the pod's extended resources: its name, and what of it is whose. Pure."""
    found: Object = (pod.get("status") or {}).get("extendedResourceClaimStatus") or {}
    return found


def entries(pod: Object, container: Object) -> list[Object]:
    """The claims and requests a container names, and those that stand for its extended resources. Pure."""
    return [*((container.get("resources") or {}).get("claims") or ()),
            *({"name": EXTENDED, "request": one["requestName"], "resource": one["resourceName"]}
              for one in extended(pod).get("requestMappings") or () if one["containerName"] == container["name"])]


def chosen(entries: list[Object], claims: list[Object]) -> tuple[str, ...]:
    """The CDI devices of what a container names. Pure."""
    return tuple(dict.fromkeys(cdi for entry in entries
                               for _, device in named_devices(entry, claims) for cdi in device["cdi"]))


def named_devices(entry: Object, claims: list[Object]) -> Iterator[tuple[str, Object]]:
    """(driver, device) of the claim, or of that request of it, which a container's entry names; a request's
    alternatives (`request/alternative`) are the request's. Pure."""
    request = (entry.get("request") or "").partition("/")[0]
    for claim in claims:
        for driver, devices in claim["drivers"].items() if claim["own"] == entry["name"] else ():
            yield from ((driver, d) for d in devices
                        if not request or not d["requests"] or request in d["requests"])


def _message(claim: Object) -> Any:
    return dra.Claim(namespace=claim["namespace"], uid=claim["uid"], name=claim["name"])

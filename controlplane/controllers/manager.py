"""All controllers of the process, on one set of informers.

Owns which controllers there are and the order they are made in: the garbage collector comes last, for it follows by
metadata whatever nobody else follows in full. Promises that they run together and stop together. Called by `__main__`
and by tests.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from controlplane.client.informer import Informers
from controlplane.client.rest import Client
from controlplane.cloud.provider import chosen
from controlplane.controllers.access.certificates import CertificateRequests, PodCertificateRequests
from controlplane.controllers.access.legacytokens import LegacyTokens
from controlplane.controllers.access.roleaggregation import RoleAggregation
from controlplane.controllers.access.tokencleaner import TokenCleaner
from controlplane.controllers.access.tokensecrets import TokenSecrets
from controlplane.controllers.namespaces import furniture
from controlplane.controllers.namespaces.garbage import Garbage
from controlplane.controllers.namespaces.namespace import Namespaces
from controlplane.controllers.namespaces.resourcequota import ResourceQuotas
from controlplane.controllers.nodes.lifecycle import NodeLifecycle
from controlplane.controllers.nodes.podcidrs import PodCidrs
from controlplane.controllers.nodes.podgc import PodCollector
from controlplane.controllers.nodes.tainteviction import TaintEviction
from controlplane.controllers.runtime import Context, Controller
from controlplane.controllers.scaling.autoscaler import Autoscalers
from controlplane.controllers.services.balancers import Balancers
from controlplane.controllers.services.endpoints import Endpoints, EndpointSlices
from controlplane.controllers.services.mirror import Mirror
from controlplane.controllers.services.servicecidrs import ServiceCidrs
from controlplane.controllers.volumes.attachdetach import AttachDetach
from controlplane.controllers.volumes.ephemeral import EphemeralVolumes
from controlplane.controllers.volumes.localpath import LocalPath
from controlplane.controllers.volumes.protection import StorageProtection
from controlplane.controllers.volumes.volumebinder import VolumeBinder
from controlplane.controllers.workloads.cronjobs.controller import CronJobs
from controlplane.controllers.workloads.daemonsets.controller import DaemonSets
from controlplane.controllers.workloads.deployments.controller import Deployments
from controlplane.controllers.workloads.disruption.controller import Disruption
from controlplane.controllers.workloads.jobs.controller import Jobs
from controlplane.controllers.workloads.jobs.expiry import FinishedJobs
from controlplane.controllers.workloads.replicasets.controller import replicasets, replication_controllers
from controlplane.controllers.workloads.resourceclaims import ResourceClaims
from controlplane.controllers.workloads.statefulsets.controller import StatefulSets
from controlplane.machinery.clock import SYSTEM, Clock


@dataclass(frozen=True, slots=True)
class Settings:
    """What the controllers need to know of the cluster. `cluster_cidr` are the ranges of pods, by commas; `root_ca` is
    PEM text; empty means: publish none. The signing files are the authority's, None: sign nothing."""

    cluster_cidr: str = "10.244.0.0/16"
    root_ca: str = ""
    signing_certificate: Path | None = None
    signing_key: Path | None = None
    cloud: str = ""  # as in `cloud.provider.chosen`


def build(context: Context, settings: Settings) -> list[Controller]:
    publisher = [furniture.root_ca(context, settings.root_ca)] if settings.root_ca else []
    return [
        Deployments(context), replicasets(context), replication_controllers(context), DaemonSets(context),
        StatefulSets(context), Jobs(context), FinishedJobs(context), CronJobs(context), Autoscalers(context),
        Disruption(context), ResourceClaims(context),
        EndpointSlices(context), Endpoints(context), Mirror(context), ServiceCidrs(context),
        Namespaces(context), furniture.service_accounts(context), *publisher, ResourceQuotas(context),
        TokenSecrets(context, settings.root_ca), LegacyTokens(context), TokenCleaner(context), RoleAggregation(context),
        CertificateRequests(context, settings.signing_certificate, settings.signing_key),
        PodCertificateRequests(context),
        NodeLifecycle(context), TaintEviction(context), PodCidrs(context, settings.cluster_cidr), PodCollector(context),
        StorageProtection(context), VolumeBinder(context), LocalPath(context), EphemeralVolumes(context),
        AttachDetach(context),
        *_cloud(context, settings), Garbage(context)]


def _cloud(context: Context, settings: Settings) -> list[Controller]:
    """The controllers of what the cloud answers for; none where a cloud-controller-manager from elsewhere does."""
    provider = chosen(settings.cloud)
    made: list[Controller] = []
    if provider.instances is not None:
        from controlplane.controllers.nodes.cloudnodes import CloudNodes
        made.append(CloudNodes(context, provider.instances))
    if provider.routes is not None:
        from controlplane.controllers.nodes.cloudroutes import CloudRoutes
        made.append(CloudRoutes(context, provider.routes))
    if provider.balancers is not None:
        made.append(Balancers(context, settings.cluster_cidr, provider.balancers))
    return made


class Manager:
    """`follow` fills the informers, `work` runs the controllers; a candidate for leadership follows already.

    `informers`: with those that others in the process want in full, before the garbage collector takes the rest."""

    def __init__(self, client: Client, settings: Settings, clock: Clock = SYSTEM,
                 informers: Informers | None = None) -> None:
        self.informers = Informers(client, clock) if informers is None else informers
        self.controllers = build(Context(client, self.informers, clock), settings)

    async def follow(self, ready: Callable[[], None]) -> None:
        """Run the informers until cancelled; `ready` is called once when all have their first list."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.informers.run(), name="informers")
            await self.informers.synced()
            gc.collect()
            gc.freeze()  # what lives now lives on: the collector need not walk the first lists again and again
            ready()

    async def work(self) -> None:
        """Run the controllers until cancelled."""
        async with asyncio.TaskGroup() as group:
            for controller in self.controllers:
                group.create_task(controller.run(), name=controller.name)

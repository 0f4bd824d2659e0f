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
from controlplane.controllers.nodes.node import NodeLifecycle
from controlplane.controllers.nodes.podcidrs import PodCidrs
from controlplane.controllers.nodes.podgc import PodCollector
from controlplane.controllers.nodes.tainteviction import TaintEviction
from controlplane.controllers.runtime import Context, Controller
from controlplane.controllers.services.balancers import Balancers
from controlplane.controllers.services.endpointslice import Endpoints, EndpointSlices
from controlplane.controllers.services.mirror import Mirror
from controlplane.controllers.volumes.attachdetach import AttachDetach
from controlplane.controllers.volumes.ephemeral import EphemeralVolumes
from controlplane.controllers.volumes.localpath import LocalPath
from controlplane.controllers.volumes.protection import StorageProtection
from controlplane.controllers.volumes.volumebinder import VolumeBinder
from controlplane.controllers.workloads import replicaset
from controlplane.controllers.workloads.deployment import Deployments
from controlplane.controllers.workloads.disruption import Disruption
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.resources import BUILTIN


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
    made: list[Controller] = [
        Deployments(context), replicaset.replicasets(context), replicaset.replication_controllers(context),
        EndpointSlices(context), Endpoints(context), Mirror(context), Namespaces(context),
        furniture.service_accounts(context), TokenSecrets(context, settings.root_ca), LegacyTokens(context)]
    if settings.root_ca:
        made.append(furniture.root_ca(context, settings.root_ca))
    made += _workloads(context)
    return [*made, NodeLifecycle(context), TaintEviction(context), PodCidrs(context, settings.cluster_cidr),
            PodCollector(context), RoleAggregation(context), TokenCleaner(context),
            CertificateRequests(context, settings.signing_certificate, settings.signing_key),
            PodCertificateRequests(context),
            ResourceQuotas(context), Disruption(context), StorageProtection(context), VolumeBinder(context),
            LocalPath(context), EphemeralVolumes(context), AttachDetach(context),
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


def _workloads(context: Context) -> list[Controller]:
    """The controllers of kinds that the API may not serve; a kind that is not served has no controller."""
    served = {resource.name for resource in BUILTIN}
    made: list[Controller] = []
    if {"daemonsets.apps", "controllerrevisions.apps"} <= served:
        from controlplane.controllers.workloads.daemonset import DaemonSets
        made.append(DaemonSets(context))
    if {"statefulsets.apps", "controllerrevisions.apps", "persistentvolumeclaims"} <= served:
        from controlplane.controllers.workloads.statefulset import StatefulSets
        made.append(StatefulSets(context))
    if "jobs.batch" in served:
        from controlplane.controllers.workloads.job import Jobs
        from controlplane.controllers.workloads.jobttl import FinishedJobs
        made += [Jobs(context), FinishedJobs(context)]
    if "horizontalpodautoscalers.autoscaling" in served:
        from controlplane.controllers.scaling.autoscaler import Autoscalers
        made.append(Autoscalers(context))
    if {"resourceclaims.resource.k8s.io", "resourceclaimtemplates.resource.k8s.io"} <= served:
        from controlplane.controllers.workloads.resourceclaims import ResourceClaims
        made.append(ResourceClaims(context))
    if {"servicecidrs.networking.k8s.io", "ipaddresses.networking.k8s.io"} <= served:
        from controlplane.controllers.services.servicecidrs import ServiceCidrs
        made.append(ServiceCidrs(context))
    if {"jobs.batch", "cronjobs.batch"} <= served:
        from controlplane.controllers.workloads.cronjob import CronJobs
        made.append(CronJobs(context))
    return made


class Manager:
    """`follow` fills the informers, `work` runs the controllers; a candidate for leadership follows already."""

    def __init__(self, client: Client, settings: Settings, clock: Clock = SYSTEM) -> None:
        self.informers = Informers(client, clock)
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

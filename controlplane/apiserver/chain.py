"""Which admission plugins a server asks, in which order.

Owns nothing but the list: a new plugin is one line here. Called once, by the server that puts itself together.

Upstream: the order of 1.36 (kubeapiserver/options/plugins.go).
"""

from __future__ import annotations

from controlplane.apiserver.admission import Chain
from controlplane.apiserver.context import Context
from controlplane.apiserver.plugins.accounts import ServiceAccounts
from controlplane.apiserver.plugins.classes import (
    DefaultIngressClass,
    DefaultStorageClass,
    PodTopologyLabels,
    RuntimeClasses,
    StorageObjectInUse,
    VolumeResize,
)
from controlplane.apiserver.plugins.limitranger import LimitRanger
from controlplane.apiserver.plugins.namespaces import NamespaceLifecycle
from controlplane.apiserver.plugins.nodes import NodeRestriction, TaintNewNodes
from controlplane.apiserver.plugins.pods import DefaultTolerations
from controlplane.apiserver.plugins.podsecurity import PodSecurity
from controlplane.apiserver.plugins.priorities import Priority
from controlplane.apiserver.plugins.quota import ResourceQuotas
from controlplane.apiserver.plugins.roles import RoleEscalation
from controlplane.apiserver.policies.compilation import Expressions
from controlplane.apiserver.policies.mutating import MutatingPolicies
from controlplane.apiserver.policies.validating import ValidatingPolicies
from controlplane.apiserver.webhooks.dispatch import Webhooks
from controlplane.apiserver.writing.podcertificates import PodCertificates
from controlplane.apiserver.writing.signing import CertificateRequests
from controlplane.apiserver.writing.trustbundles import TrustBundles

PLUGINS = (
    NamespaceLifecycle, LimitRanger, ServiceAccounts, NodeRestriction, TaintNewNodes, Priority, DefaultTolerations,
    DefaultStorageClass, StorageObjectInUse, RuntimeClasses, DefaultIngressClass, PodTopologyLabels, PodSecurity,
    VolumeResize, RoleEscalation, CertificateRequests, PodCertificates, TrustBundles, Expressions,
    MutatingPolicies, ValidatingPolicies, Webhooks, ResourceQuotas)


def standard(context: Context) -> Chain:
    """The chain of a running server."""
    return Chain([plugin(context) for plugin in PLUGINS])

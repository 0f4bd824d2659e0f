"""The table of kinds: one declarative entry per resource, read by everything that must know what kinds exist.

Routing, discovery, OpenAPI, printing, garbage collection, the client and the controllers all read this table; a
CustomResourceDefinition adds the same entry at run time. It holds facts only: behaviour per kind (defaults, validation,
what a create or update prepares) lives in `strategy`, found by `(group, kind)`.

A row of `_TABLE` reads: plural, kind, short names, flags, subresources. Flags: `C` cluster-scoped (else namespaced),
`A` in category `all`, `X` in category `api-extensions`, `S` has `status`, `s` has `scale`, `1` create only (reviews),
`r` read only (get, list), `d` no deletecollection, `N` known but not served yet: nothing acts on it, and an object that
nobody acts on is worse than a clear 404. Further subresources are listed as `name:verbs[:group/version/Kind]`.

Upstream: the REST storage registrations of k8s.io/kubernetes/pkg/registry; versions and order as 1.36 serves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
STATUS_VERBS = ("get", "patch", "update")
_VERBS = {"c": "create", "d": "delete", "g": "get", "p": "patch", "u": "update"}


@dataclass(frozen=True, slots=True)
class Subresource:
    """A part of an object with its own URL: `kind`, `group` and `version` are of the body it speaks."""

    name: str
    verbs: tuple[str, ...]
    kind: str
    group: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Resource:
    """One served resource of one group-version. Hashable by identity of its fields; compare with `is` or `==`."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[Subresource, ...] = ()
    definition: str = ""  # name of its schema in machinery.schema; "" when it has none
    storage_version: str = ""  # the version its objects are stored in; "" = this one
    custom: bool = False  # made by a CustomResourceDefinition
    singular_name: str = ""  # "" = the kind in lower case
    list_kind: str = ""  # "" = the kind and "List"
    extra: dict[str, object] = field(default_factory=dict, compare=False, hash=False, repr=False)

    @property
    def singular(self) -> str:
        return self.singular_name or self.kind.lower()

    @property
    def lists(self) -> str:
        """The kind of its lists."""
        return self.list_kind or self.kind + "List"

    @property
    def shape(self) -> Any:
        """What bodies are checked against: the name of the definition, or a custom kind's own schema."""
        return self.extra.get("shape") or self.definition

    @property
    def node(self) -> Any:
        """What apply merges by: the name of the definition, or a custom kind's schema node."""
        shape: Any = self.extra.get("shape")
        return self.definition if shape is None else shape.node

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def name(self) -> str:
        """`deployments.apps`, or `pods`: how upstream's GroupResource prints."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def bucket(self) -> str:
        """The name its objects are stored under: its own, or that of the kind it is another form of."""
        return _STORED_AS.get((self.group, self.plural)) or self.name

    @property
    def converts(self) -> bool:
        """Whether what is shown may differ from what is stored."""
        return self.custom or self.version != (self.storage_version or self.version)

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of the collection, object or subresource."""
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if self.namespaced and namespace:
            parts.append(f"namespaces/{namespace}")
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)

    def subresource(self, name: str) -> Subresource | None:
        return next((s for s in self.subresources if s.name == name), None)

    @property
    def has_status(self) -> bool:
        return self.subresource("status") is not None


# group-version -> rows; the order of groups is the order discovery lists them and kubectl resolves short names in.
_TABLE: dict[str, str] = {
    "v1": """
bindings Binding - 1
componentstatuses ComponentStatus cs Cr
configmaps ConfigMap cm
endpoints Endpoints ep
events Event ev
limitranges LimitRange limits
namespaces Namespace ns CSd finalize:u
nodes Node no CS proxy:cdgpu:v1/NodeProxyOptions
persistentvolumeclaims PersistentVolumeClaim pvc S
persistentvolumes PersistentVolume pv CS
pods Pod po AS attach:cg:v1/PodAttachOptions binding:c:v1/Binding ephemeralcontainers:gpu eviction:c:policy/v1/Eviction exec:cg:v1/PodExecOptions log:g portforward:cg:v1/PodPortForwardOptions proxy:cdgpu:v1/PodProxyOptions resize:gpu
podtemplates PodTemplate - -
replicationcontrollers ReplicationController rc ASs
resourcequotas ResourceQuota quota S
secrets Secret -
serviceaccounts ServiceAccount sa - token:c:authentication.k8s.io/v1/TokenRequest
services Service svc AS proxy:cdgpu:v1/ServiceProxyOptions
""",  # noqa: E501
    "apiregistration.k8s.io/v1": "apiservices APIService - CXS",
    "apps/v1": """
controllerrevisions ControllerRevision - -
daemonsets DaemonSet ds AS
deployments Deployment deploy ASs
replicasets ReplicaSet rs ASs
statefulsets StatefulSet sts ASs
""",
    "events.k8s.io/v1": "events Event ev -",
    "authentication.k8s.io/v1": """
selfsubjectreviews SelfSubjectReview - C1
tokenreviews TokenReview - C1
""",
    "authentication.k8s.io/v1beta1": "selfsubjectreviews SelfSubjectReview - C1",  # what kubectl 1.27 asks
    "authorization.k8s.io/v1": """
localsubjectaccessreviews LocalSubjectAccessReview - 1
selfsubjectaccessreviews SelfSubjectAccessReview - C1
selfsubjectrulesreviews SelfSubjectRulesReview - C1
subjectaccessreviews SubjectAccessReview - C1
""",
    "autoscaling/v2": "horizontalpodautoscalers HorizontalPodAutoscaler hpa AS",
    "autoscaling/v1": "horizontalpodautoscalers HorizontalPodAutoscaler hpa AS",
    "batch/v1": """
cronjobs CronJob cj AS
jobs Job - AS
""",
    "certificates.k8s.io/v1": "certificatesigningrequests CertificateSigningRequest csr CS approval:gpu",
    "certificates.k8s.io/v1beta1": """
clustertrustbundles ClusterTrustBundle - C
podcertificaterequests PodCertificateRequest - S
""",
    "networking.k8s.io/v1": """
ingressclasses IngressClass - C
ingresses Ingress ing S
ipaddresses IPAddress ip C
networkpolicies NetworkPolicy netpol -
servicecidrs ServiceCIDR - CS
""",
    "policy/v1": "poddisruptionbudgets PodDisruptionBudget pdb S",
    "rbac.authorization.k8s.io/v1": """
clusterrolebindings ClusterRoleBinding - C
clusterroles ClusterRole - C
rolebindings RoleBinding -
roles Role -
""",
    "storage.k8s.io/v1": """
csidrivers CSIDriver - C
csinodes CSINode - C
csistoragecapacities CSIStorageCapacity - -
storageclasses StorageClass sc C
volumeattachments VolumeAttachment - CS
volumeattributesclasses VolumeAttributesClass vac C
""",
    "admissionregistration.k8s.io/v1": """
mutatingadmissionpolicies MutatingAdmissionPolicy - CX
mutatingadmissionpolicybindings MutatingAdmissionPolicyBinding - CX
mutatingwebhookconfigurations MutatingWebhookConfiguration - CX
validatingadmissionpolicies ValidatingAdmissionPolicy - CXS
validatingadmissionpolicybindings ValidatingAdmissionPolicyBinding - CX
validatingwebhookconfigurations ValidatingWebhookConfiguration - CX
""",
    "apiextensions.k8s.io/v1": "customresourcedefinitions CustomResourceDefinition crd,crds CXS",
    "scheduling.k8s.io/v1": "priorityclasses PriorityClass pc C",
    "coordination.k8s.io/v1": "leases Lease -",
    "node.k8s.io/v1": "runtimeclasses RuntimeClass - C",
    "discovery.k8s.io/v1": "endpointslices EndpointSlice -",
    "resource.k8s.io/v1": """
deviceclasses DeviceClass - C
resourceclaims ResourceClaim - S
resourceclaimtemplates ResourceClaimTemplate - -
resourceslices ResourceSlice - C
""",
    "flowcontrol.apiserver.k8s.io/v1": """
flowschemas FlowSchema - CS
prioritylevelconfigurations PriorityLevelConfiguration - CS
""",
}

# Kinds that older and newer versions share: the version their objects are stored in.
_STORED_IN = {("autoscaling", "horizontalpodautoscalers"): "v2", ("events.k8s.io", "events"): "core/v1"}
# A kind whose objects are those of another group: the name they are stored under.
_STORED_AS = {("events.k8s.io", "events"): "events"}
# Schemas live under names of Go packages, which the group alone does not give.
_PACKAGE = {"apiregistration.k8s.io": "io.k8s.kube-aggregator.pkg.apis.apiregistration.{v}.{k}",
            "apiextensions.k8s.io": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{v}.{k}",
            "flowcontrol.apiserver.k8s.io": "io.k8s.api.flowcontrol.{v}.{k}"}


# Versions that differ in nothing but their name share a schema.
_SCHEMA_OF = {("authentication.k8s.io", "v1beta1"): "v1"}


def _definition(group: str, version: str, kind: str) -> str:
    version = _SCHEMA_OF.get((group, version), version)
    pattern = _PACKAGE.get(group, "io.k8s.api." + (group.split(".")[0] or "core") + ".{v}.{k}")
    return pattern.format(v=version, k=kind)


def _subresource(text: str, parent: Resource) -> Subresource:
    name, verbs, *body = text.split(":")
    words = tuple(sorted(_VERBS[v] for v in verbs))
    if not body:
        return Subresource(name, words, parent.kind)
    *gv, kind = body[0].split("/")
    group, version = gv if len(gv) == 2 else ("", gv[0])
    return Subresource(name, words, kind, group if group != parent.group else "",
                       version if (group, version) != (parent.group, parent.version) else "")


def _row(group: str, version: str, line: str) -> Resource:
    plural, kind, shorts, flags, *more = [*line.split(), "-"][:max(4, len(line.split()))]
    flags = flags.replace("-", "")
    verbs: tuple[str, ...] = ALL_VERBS
    if "1" in flags:
        verbs = ("create",)
    elif "r" in flags:
        verbs = ("get", "list")
    elif "d" in flags:
        verbs = tuple(v for v in ALL_VERBS if v != "deletecollection")
    base = Resource(
        group, version, plural, kind, namespaced="C" not in flags,
        short_names=tuple(shorts.split(",")) if shorts != "-" else (), verbs=verbs,
        categories=(("all",) if "A" in flags else ()) + (("api-extensions",) if "X" in flags else ()),
        definition=_definition(group, version, kind),
        storage_version=_STORED_IN.get((group, plural), version))
    subs = [_subresource(text, base) for text in more if ":" in text]
    if "S" in flags:
        subs.append(Subresource("status", STATUS_VERBS, kind))
    if "s" in flags:
        subs.append(Subresource("scale", STATUS_VERBS, "Scale", "autoscaling", "v1"))
    if subs:
        base = replace(base, subresources=tuple(sorted(subs, key=lambda s: s.name)))
    return base


def _pending(line: str) -> bool:
    return any("N" in flags for flags in line.split()[3:4])


class Registry:
    """The kinds a server knows: the built-in ones and, added and removed at run time, custom ones."""

    def __init__(self, entries: list[Resource]) -> None:
        self._entries: list[Resource] = []
        self._by_path: dict[tuple[str, str, str], Resource] = {}
        self._by_kind: dict[tuple[str, str], Resource] = {}
        self.on_change: list[Callable[[], None]] = []  # called when custom kinds have come or gone
        for entry in entries:
            self.add(entry)

    def add(self, entry: Resource) -> None:
        self._entries.append(entry)
        self._by_path[entry.group, entry.version, entry.plural] = entry
        self._by_kind[entry.api_version, entry.kind] = entry

    def remove(self, entry: Resource) -> None:
        self._entries.remove(entry)
        del self._by_path[entry.group, entry.version, entry.plural]
        del self._by_kind[entry.api_version, entry.kind]

    def customize(self, entries: Iterable[Resource]) -> None:
        """Serve exactly these custom kinds, in this order, after the built-in ones, which win a name both claim."""
        kept = [entry for entry in self._entries if not entry.custom]
        self._entries, self._by_path, self._by_kind = [], {}, {}
        for entry in kept:
            self.add(entry)
        for entry in entries:
            if (entry.group, entry.version, entry.plural) not in self._by_path \
                    and (entry.api_version, entry.kind) not in self._by_kind:
                self.add(entry)
        for told in self.on_change:
            told()

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._entries)

    def at(self, group: str, version: str, plural: str) -> Resource | None:
        """The resource of a URL."""
        return self._by_path.get((group, version, plural))

    def of(self, api_version: str, kind: str) -> Resource | None:
        """The resource of an object's type."""
        return self._by_kind.get((api_version, kind))

    def named(self, name: str) -> Resource:
        """The preferred version of `pods` or `deployments.apps`. Raises KeyError."""
        for entry in self._entries:
            if entry.name == name:
                return entry
        raise KeyError(name)

    def group_versions(self) -> dict[str, list[str]]:
        """Groups in discovery order, each with its versions, the preferred one first."""
        groups: dict[str, list[str]] = {}
        for entry in self._entries:
            versions = groups.setdefault(entry.group, [])
            if entry.version not in versions:
                versions.append(entry.version)
        return groups

    def in_version(self, group: str, version: str) -> list[Resource]:
        return [e for e in self._entries if (e.group, e.version) == (group, version)]


def builtin() -> Registry:
    """A fresh registry of every built-in kind."""
    entries = []
    for group_version, rows in _TABLE.items():
        group, _, version = group_version.rpartition("/")
        entries += [_row(group, version, line) for line in rows.strip().splitlines() if not _pending(line)]
    return Registry(entries)


BUILTIN = builtin()


def named(name: str) -> Resource:
    """A built-in resource by name: `named("pods")`, `named("deployments.apps")`. Raises KeyError."""
    return BUILTIN.named(name)

"""The pod's /etc/hosts, host name and resolver settings: text and values, no files written here.

Pure. Promises the layout upstream writes, since programs parse it. Called by `specs` (DNS, names) and `worker`, which
writes the file.
"""

from __future__ import annotations

from typing import Any

from agent.kubelet.env import ConfigError
from agent.kubelet.model import DNS

HEADER = "# Kubernetes-managed hosts file.\n"
HOST_HEADER = "# Kubernetes-managed hosts file (host network).\n"
STATIC = ("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n"
          "fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
NAME_LIMIT = 63  # of a DNS label
KERNEL_LIMIT = 64  # of a host name in the kernel
MAX_SEARCHES, MAX_SERVERS = 32, 3  # what resolvers accept; more are dropped, as upstream does


def hostname(pod: dict[str, Any], node_name: str) -> str:
    """The pod's host name: the node's on the host network, else what the pod asks for, short or of any form."""
    spec = pod["spec"]
    if spec.get("hostNetwork"):
        return node_name
    if spec.get("hostnameOverride"):
        return str(spec["hostnameOverride"])
    return str(spec.get("hostname") or pod["metadata"]["name"])[:NAME_LIMIT].rstrip("-.")


def kernel_name(pod: dict[str, Any], node_name: str, domain: str) -> str:
    """What `hostname` prints inside: the short name, or the full one with setHostnameAsFQDN. Raises ConfigError."""
    short = hostname(pod, node_name)
    spec = pod["spec"]
    full = fqdn(pod, domain, short) if spec.get("setHostnameAsFQDN") and not spec.get("hostNetwork") else ""
    if len(full) > KERNEL_LIMIT:
        raise ConfigError(f"failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long "
                          f"({KERNEL_LIMIT} characters is the max, {len(full)} characters requested)")
    return full or short


def fqdn(pod: dict[str, Any], domain: str, short: str) -> str:
    """The name under the pod's subdomain, or "" without one."""
    subdomain = pod["spec"].get("subdomain")
    if not subdomain or not domain or pod["spec"].get("hostnameOverride"):
        return ""
    return f"{short}.{subdomain}.{pod['metadata'].get('namespace', '')}.svc.{domain}"


def render(pod: dict[str, Any], ips: tuple[str, ...], node_name: str, domain: str, node_hosts: str) -> str:
    """The text of /etc/hosts. `node_hosts` is the node's own file, used on the host network."""
    spec = pod["spec"]
    if spec.get("hostNetwork"):
        text = HOST_HEADER + node_hosts
    else:
        short = hostname(pod, node_name)
        full = fqdn(pod, domain, short)
        names = f"{full}\t{short}" if full else short
        text = HEADER + STATIC + "".join(f"{ip}\t{names}\n" for ip in ips)
    aliases = spec.get("hostAliases") or ()
    if aliases:
        text += "\n# Entries added by HostAliases.\n"
        text += "".join(f"{a['ip']}\t" + "\t".join(a.get("hostnames") or ()) + "\n" for a in aliases)
    return text


def parse_resolv(text: str) -> DNS:
    """A resolv.conf as a DNS value."""
    servers: list[str] = []
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver":
            servers.append(words[1])
        elif words[0] in ("search", "domain"):
            searches = tuple(w for w in words[1:] if w != ".")
        elif words[0] == "options":
            options = tuple(words[1:])
    return DNS(tuple(servers), searches, options)


def dns(pod: dict[str, Any], node: DNS, cluster_dns: tuple[str, ...], domain: str) -> DNS:
    """Resolver settings by dnsPolicy and dnsConfig. ClusterFirst without a cluster DNS uses the node's resolvers."""
    spec = pod["spec"]
    policy = spec.get("dnsPolicy") or "ClusterFirst"
    if policy == "None":
        base = DNS()
    elif not cluster_dns or policy == "Default" or (policy == "ClusterFirst" and spec.get("hostNetwork")):
        base = node
    else:
        own = f"{pod['metadata'].get('namespace', '')}.svc.{domain}"
        base = DNS(cluster_dns, (own, f"svc.{domain}", domain, *node.searches), ("ndots:5",))
    more = spec.get("dnsConfig") or {}
    servers = dict.fromkeys([*base.servers, *(more.get("nameservers") or ())])
    searches = dict.fromkeys([*base.searches, *(more.get("searches") or ())])
    options = {o.partition(":")[0]: o for o in base.options}
    for option in more.get("options") or ():
        value = option.get("value")
        options[option["name"]] = option["name"] if value in (None, "") else f"{option['name']}:{value}"
    return DNS(tuple(servers)[:MAX_SERVERS], tuple(searches)[:MAX_SEARCHES], tuple(options.values()))

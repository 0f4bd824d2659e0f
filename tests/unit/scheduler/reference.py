"""The scheduler's rules once more, as plainly as they can be said: every node and every pod looked at every time.

Written from upstream's documentation alone and sharing no judgement with the scheduler (only its reading of quantities
and selectors), so that the incremental tables can be held against it.
"""

import math

from controlplane.machinery.quantity import parse
from controlplane.machinery.selectors import from_label_selector


def labels(obj):
    return obj["metadata"].get("labels") or {}


class World:
    def __init__(self, nodes, pods, namespaces):
        self.nodes, self.pods, self.namespaces = nodes, pods, namespaces  # pods: [(pod, node name)]

    def on(self, node):
        return [p for p, at in self.pods if at == node["metadata"]["name"]]

    def in_domain(self, node, key):
        value = labels(node).get(key)
        names = {n["metadata"]["name"] for n in self.nodes if labels(n).get(key) == value}
        return [p for p, at in self.pods if at in names] if value is not None else []


def cpu(pod):
    return sum(parse(c["resources"].get("requests", {}).get("cpu", "0")).milli() for c in pod["spec"]["containers"])


def memory(pod):
    return sum(parse(c["resources"].get("requests", {}).get("memory", "0")).value() for c in pod["spec"]["containers"])


def floor(pod, what):
    least = {"cpu": "100m", "memory": "200Mi"}[what]
    texts = [c["resources"].get("requests", {}).get(what, least) for c in pod["spec"]["containers"]]
    return sum(parse(t).milli() if what == "cpu" else parse(t).value() for t in texts)


def allocatable(node, what):
    found = parse(node["status"]["allocatable"].get(what, "0"))
    return found.milli() if what == "cpu" else found.value()


def tolerated(pod, taint):
    return any((not t.get("effect") or t["effect"] == taint["effect"]) and (
        (not t.get("key") and t.get("operator") == "Exists")
        or (t.get("key") == taint["key"] and (t.get("operator") == "Exists" or t.get("value", "") == taint["value"])))
        for t in pod["spec"].get("tolerations", ()))


def wanted_by_selector(pod, node):
    return all(labels(node).get(k) == v for k, v in pod["spec"].get("nodeSelector", {}).items())


def covers(term, owner, other, world):
    names = term.get("namespaces") or []
    by_label = term.get("namespaceSelector")
    if not names and by_label is None:
        names = [owner["metadata"]["namespace"]]
    theirs = other["metadata"]["namespace"]
    if theirs not in names and not (by_label is not None and
                                    from_label_selector(by_label).matches(world.namespaces[theirs])):
        return False
    return from_label_selector(term.get("labelSelector")).matches(labels(other))


def terms(pod, kind, strength="required"):
    found = pod["spec"].get("affinity", {}).get(kind, {})
    return found.get(f"{strength}DuringSchedulingIgnoredDuringExecution", [])


def included(pod, constraint, node):
    """Whether the node's pods count, by the constraint's policies about nodes."""
    if constraint.get("nodeAffinityPolicy", "Honor") == "Honor" and not wanted_by_selector(pod, node):
        return False
    return constraint.get("nodeTaintsPolicy") != "Honor" or all(
        t["effect"] == "PreferNoSchedule" or tolerated(pod, t) for t in node["spec"]["taints"])


def spread_refusal(pod, node, world):
    constraints = [c for c in pod["spec"].get("topologySpreadConstraints", ())
                   if c["whenUnsatisfiable"] == "DoNotSchedule"]
    counted = [n for n in world.nodes if all(c["topologyKey"] in labels(n) for c in constraints)]
    for c in constraints:
        key, selector = c["topologyKey"], from_label_selector(c["labelSelector"])
        if key not in labels(node):
            return "node(s) didn't match pod topology spread constraints (missing required label)"
        counts = {}
        for n in counted:
            if not included(pod, c, n):
                continue
            domain = labels(n)[key]
            counts[domain] = counts.get(domain, 0) + sum(
                p["metadata"]["namespace"] == pod["metadata"]["namespace"] and selector.matches(labels(p))
                for p in world.on(n))
        least = min(counts.values(), default=0) if len(counts) >= c.get("minDomains", 1) else 0
        if counts.get(labels(node)[key], 0) + selector.matches(labels(pod)) - least > c["maxSkew"]:
            return "node(s) didn't match pod topology spread constraints"
    return None


def affinity_refusal(pod, node, world):
    near = terms(pod, "podAffinity")

    def all_of(other):
        return all(covers(t, pod, other, world) for t in near)
    if near:
        missing = any(t["topologyKey"] not in labels(node) for t in near)
        friends = [[p for p in world.in_domain(node, t["topologyKey"]) if all_of(p)] for t in near]
        if missing or not all(friends):
            names = {n["metadata"]["name"]: n for n in world.nodes}
            anywhere = any(all_of(p) and any(t["topologyKey"] in labels(names[at]) for t in near)
                           for p, at in world.pods)
            if missing or anywhere or not all_of(pod):
                return "node(s) didn't match pod affinity rules"
    for t in terms(pod, "podAntiAffinity"):
        if any(covers(t, pod, p, world) for p in world.in_domain(node, t["topologyKey"])):
            return "node(s) didn't match pod anti-affinity rules"
    for other, at in world.pods:
        host = next(n for n in world.nodes if n["metadata"]["name"] == at)
        for t in terms(other, "podAntiAffinity"):
            key = t["topologyKey"]
            if covers(t, other, pod, world) and key in labels(host) and labels(host)[key] == labels(node).get(key):
                return "node(s) didn't satisfy existing pods anti-affinity rules"
    return None


def reasons(pod, node, world):
    """Upstream's words, in the order of its filters; empty when the node takes the pod."""
    if node["spec"].get("unschedulable"):
        return ["node(s) were unschedulable"]
    for t in node["spec"]["taints"]:
        if t["effect"] in ("NoSchedule", "NoExecute") and not tolerated(pod, t):
            return [f"node(s) had untolerated taint {{{t['key']}: {t['value']}}}"]
    if not wanted_by_selector(pod, node):
        return ["node(s) didn't match Pod's node affinity/selector"]
    here = world.on(node)
    short = ["Too many pods"] if len(here) + 1 > allocatable(node, "pods") else []
    for what, of in (("cpu", cpu), ("memory", memory)):
        if of(pod) and of(pod) > allocatable(node, what) - sum(map(of, here)):
            short.append(f"Insufficient {what}")
    if short:
        return short
    other = spread_refusal(pod, node, world) or affinity_refusal(pod, node, world)
    return [other] if other else []


def wish(pod, node, world):
    """The sum of weights between the pod and those in the node's domains, both ways."""
    total = 0
    for kind, sign in (("podAffinity", 1), ("podAntiAffinity", -1)):
        for w in terms(pod, kind, "preferred"):
            t = w["podAffinityTerm"]
            total += sign * w["weight"] * sum(covers(t, pod, p, world) for p in world.in_domain(node, t["topologyKey"]))
    names = {n["metadata"]["name"]: n for n in world.nodes}
    for other, at in world.pods:
        theirs = [(t, 1) for t in terms(other, "podAffinity")]
        theirs += [(w["podAffinityTerm"], w["weight"]) for w in terms(other, "podAffinity", "preferred")]
        theirs += [(w["podAffinityTerm"], -w["weight"]) for w in terms(other, "podAntiAffinity", "preferred")]
        for t, weight in theirs:
            key = t["topologyKey"]
            if key in labels(names[at]) and labels(names[at])[key] == labels(node).get(key) \
                    and covers(t, other, pod, world):
                total += weight
    return total


def crowding(pod, fitting, world):
    constraints = [c for c in pod["spec"].get("topologySpreadConstraints", ())
                   if c["whenUnsatisfiable"] == "ScheduleAnyway"]
    open_ = [n for n in fitting if all(c["topologyKey"] in labels(n) for c in constraints)]
    found = []
    for node in fitting:
        if node not in open_:
            found.append(None)
            continue
        total = 0.0
        for c in constraints:
            key, selector = c["topologyKey"], from_label_selector(c["labelSelector"])
            size = len(open_) if key == "kubernetes.io/hostname" else len({labels(n)[key] for n in open_})
            counted = [p for n in world.nodes if labels(n).get(key) == labels(node)[key]
                       and all(k["topologyKey"] in labels(n) for k in constraints) and included(pod, c, n)
                       for p in world.on(n)]
            count = sum(p["metadata"]["namespace"] == pod["metadata"]["namespace"] and selector.matches(labels(p))
                        for p in counted)
            total += count * math.log(size + 2) + c["maxSkew"] - 1
        found.append(total)
    return found


def scores(pod, fitting, world):
    """The weighted sum per fitting node."""
    total = []
    for node in fitting:
        here, shares, used = world.on(node), [], []
        for what, of in (("cpu", cpu), ("memory", memory)):
            have = allocatable(node, what)
            shares.append(max(0.0, 1 - (sum(floor(p, what) for p in here) + floor(pod, what)) / have))
            used.append(min(1.0, (sum(map(of, here)) + of(pod)) / have))
        balance = 100 * (1 - abs(used[0] - used[1]) / 2) if cpu(pod) or memory(pod) else 0
        total.append(100 * sum(shares) / 2 + balance)
    shunned = [sum(t["effect"] == "PreferNoSchedule" and not tolerated(pod, t) for t in n["spec"]["taints"])
               for n in fitting]
    wishes = [wish(pod, n, world) for n in fitting]
    crowded = crowding(pod, fitting, world)
    known = [c for c in crowded if c is not None]
    for i in range(len(fitting)):
        total[i] += 3 * (100 * (1 - shunned[i] / max(shunned)) if max(shunned) else 100)
        if max(wishes) > min(wishes):
            total[i] += 2 * 100 * (wishes[i] - min(wishes)) / (max(wishes) - min(wishes))
        if crowded[i] is not None:
            total[i] += 2 * (100 * (max(known) + min(known) - crowded[i]) / max(known) if max(known) else 100)
    return total

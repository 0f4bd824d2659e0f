"""Where volumes let a pod run: what a driver has room for, and how many of them a node can attach."""

from controlplane.scheduler import volumes
from controlplane.scheduler.configuration import Profile
from controlplane.scheduler.decider import Decider
from controlplane.scheduler.imagined import Cluster
from tests.unit.scheduler.test_decisions import node, pod

LAZY = {"metadata": {"name": "lazy"}, "provisioner": "csi.x.io", "volumeBindingMode": "WaitForFirstConsumer"}
DRIVER = {"metadata": {"name": "csi.x.io"}, "spec": {"storageCapacity": True}}


def claim(name, size="10Gi", volume=""):
    notes = {"pv.kubernetes.io/bind-completed": "yes"} if volume else {}
    return {"metadata": {"name": name, "namespace": "default", "annotations": notes}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "lazy", "volumeName": volume,
        "resources": {"requests": {"storage": size}}}}


def capacity(where, size, name="lazy", **more):
    return {"metadata": {"name": f"{where}-{size}"}, "storageClassName": name, "capacity": size,
            "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": where}}, **more}


def using(name, *claims):
    return pod(name, volumes=[{"name": c, "persistentVolumeClaim": {"claimName": c}} for c in claims])


def verdict(wanted, nodes, running=(), **stored):
    names = {"claims": "persistentvolumeclaims", "volumes": "persistentvolumes",
             "drivers": "csidrivers.storage.k8s.io", "capacities": "csistoragecapacities.storage.k8s.io",
             "csinodes": "csinodes.storage.k8s.io"}
    decider = Decider(Cluster({"storageclasses.storage.k8s.io": [LAZY], **{names[k]: v for k, v in stored.items()}}))
    for name in nodes:
        decider.snapshot.set_node(node(name, labels={"kubernetes.io/hostname": name}))
    for one, at in running:
        decider.snapshot.place(one, at)
    return decider.decide(decider.ask(wanted, Profile()), Profile())


def test_a_volume_is_made_where_its_driver_has_room():
    told = [capacity("a", "5Gi"), capacity("b", "100Gi", "other"), capacity("c", "50Gi")]
    wanted, stored = using("p", "c1"), {"claims": [claim("c1")], "drivers": [DRIVER]}
    assert verdict(wanted, "abc", capacities=told, **stored).node == "c"
    small = [capacity("c", "50Gi", maximumVolumeSize="9Gi"), {**capacity("a", "50Gi"), "nodeTopology": None}]
    assert verdict(wanted, "abc", capacities=small, **stored).refusals == {volumes.NO_SPACE.reasons[0]: 3}
    assert verdict(wanted, "abc", capacities=told, claims=[claim("c1")]).node  # a driver that does not tell is trusted


def test_a_node_attaches_no_more_volumes_than_its_driver_can():
    made = [{"metadata": {"name": f"v{n}"}, "spec": {"csi": {"driver": "csi.x.io", "volumeHandle": f"h{n}"}}}
            for n in range(2)]
    limits = [{"metadata": {"name": "a"}, "spec": {"drivers": [{"name": "csi.x.io", "allocatable": {"count": 2}}]}}]
    stored = {"claims": [claim("c0", volume="v0"), claim("c1", volume="v1"), claim("new")], "volumes": made,
              "csinodes": limits}
    running = [(using("r", "c0"), "a")]
    assert verdict(using("p", "c0", "c1"), "a", running, **stored).node == "a"  # one of them is there already
    assert verdict(using("p", "new"), "a", running, **stored).node == "a"
    assert verdict(using("p", "c1", "new"), "a", running, **stored).refusals == {volumes.TOO_MANY.reasons[0]: 1}

"""Component statuses tell who holds a watch."""

from controlplane.apiserver import componentstatus


def health(*watching):
    return {o["metadata"]["name"]: o["conditions"][0]["status"] for o in componentstatus.statuses(set(watching))}


def test_whoever_watches_is_healthy():
    assert health() == {"controller-manager": "False", "etcd-0": "True", "scheduler": "False"}
    assert health("system:kube-scheduler")["scheduler"] == "True"
    assert health("system:kube-controller-manager", "system:kube-scheduler") == {
        "controller-manager": "True", "etcd-0": "True", "scheduler": "True"}

"""The official Python client against a cluster: typed models, watches, exec, patches, the dynamic client and a lock.

It runs on the host of the cluster, as its users' programs do; each test is one program, and what it asserts fails it.
"""

import sys
import textwrap

import pytest

pytest.importorskip("kubernetes", reason="needs the kubernetes package: pip install .[test]")
pytestmark = pytest.mark.client

PROGRAM = """
from kubernetes import client, config, dynamic, stream, watch
from kubernetes.client.exceptions import ApiException
config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()
"""


def program(cluster, text):
    cluster.run(sys.executable, "-c", PROGRAM + textwrap.dedent(text), seconds=60)


def test_typed_models_and_patch_types(cluster):
    program(cluster, """
        metadata = client.V1ObjectMeta(name="typed", labels={"a": "1"})
        made = core.create_namespaced_config_map("default", client.V1ConfigMap(metadata=metadata, data={"k": "v"}))
        assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo
        made.data["k"] = "w"
        made = core.replace_namespaced_config_map("typed", "default", made)
        stale = made.metadata.resource_version
        core.patch_namespaced_config_map("typed", "default", {"data": {"m": "1"}})
        core.patch_namespaced_config_map("typed", "default", [{"op": "remove", "path": "/data/m"}])
        seen = core.read_namespaced_config_map("typed", "default")
        assert seen.data == {"k": "w"} and seen.metadata.resource_version != stale
        try:
            core.replace_namespaced_config_map("typed", "default", made)
            raise SystemExit("a stale update was taken")
        except ApiException as error:
            assert error.status == 409
        assert [m.metadata.name for m in core.list_namespaced_config_map("default", label_selector="a=1").items] == [
            "typed"]
        core.delete_namespaced_config_map("typed", "default")
        page = core.list_pod_for_all_namespaces(limit=1)
        assert page.metadata._continue and page.metadata.remaining_item_count
        """)


def test_a_deployment_is_watched_until_it_is_available_and_its_pod_runs_commands(cluster):
    program(cluster, """
        labels = {"app": "python"}
        container = client.V1Container(name="c", image="pelamis.local/demo:1",
                                       resources=client.V1ResourceRequirements(requests={"cpu": "10m"}))
        template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=labels),
                                            spec=client.V1PodSpec(containers=[container]))
        apps.create_namespaced_deployment("default", client.V1Deployment(
            metadata=client.V1ObjectMeta(name="python"), spec=client.V1DeploymentSpec(
                replicas=1, selector=client.V1LabelSelector(match_labels=labels), template=template)))
        watcher = watch.Watch()
        for event in watcher.stream(apps.list_namespaced_deployment, "default", timeout_seconds=40,
                                    field_selector="metadata.name=python"):
            if event["object"].status.available_replicas == 1:
                watcher.stop()
        pod, = core.list_namespaced_pod("default", label_selector="app=python").items
        assert pod.status.phase == "Running" and pod.status.start_time
        said = stream.stream(core.connect_get_namespaced_pod_exec, pod.metadata.name, "default",
                             command=["sh", "-c", "echo out; echo err >&2; exit 3"], stdout=True, stderr=True,
                             stdin=False, tty=False, _preload_content=False)
        said.run_forever(timeout=20)
        assert said.read_stdout() == "out\\n" and said.read_stderr() == "err\\n" and said.returncode == 3
        forward = stream.portforward(core.connect_get_namespaced_pod_portforward, pod.metadata.name, "default",
                                     ports="80")
        socket = forward.socket(80)
        socket.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        socket.settimeout(10)
        assert socket.recv(65536).startswith(b"HTTP/1.")
        forward = stream.portforward(core.connect_get_namespaced_pod_portforward, pod.metadata.name, "default",
                                     ports="81")
        forward.socket(81).settimeout(30)
        assert forward.socket(81).recv(1) == b"" and "refused" in forward.error(81)  # nobody listens there
        assert core.read_namespaced_pod_log(pod.metadata.name, "default")
        scale = apps.patch_namespaced_deployment_scale("python", "default", {"spec": {"replicas": 0}})
        assert not scale.spec.replicas  # Go leaves a zero out
        apps.delete_namespaced_deployment("python", "default", propagation_policy="Foreground")
        """)


def test_the_dynamic_client_and_server_side_apply(cluster):
    program(cluster, """
        found = dynamic.DynamicClient(client.ApiClient())
        services = found.resources.get(api_version="v1", kind="Service")
        wanted = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dynamic"},
                  "spec": {"ports": [{"port": 80}]}}
        made = services.server_side_apply(body=wanted, namespace="default", field_manager="python")
        assert made.spec.clusterIP and made.metadata.managedFields[0].operation == "Apply"
        wanted["spec"]["ports"][0]["port"] = 81
        made = services.patch(body=wanted, namespace="default", content_type="application/merge-patch+json")
        assert made.spec.ports[0].port == 81
        assert "dynamic" in [s.metadata.name for s in services.get(namespace="default").items]
        services.delete(name="dynamic", namespace="default")
        """)


def test_a_lock_has_one_holder(cluster):
    program(cluster, """
        import threading
        from kubernetes.leaderelection import electionconfig, leaderelection
        from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock
        led = threading.Event()
        def elect(name, lead):
            lock = ConfigMapLock("python-lock", "default", name)
            return leaderelection.LeaderElection(electionconfig.Config(
                lock, lease_duration=6, renew_deadline=4, retry_period=1, onstarted_leading=lead,
                onstopped_leading=None))
        threading.Thread(target=elect("one", led.set).run, daemon=True).start()
        assert led.wait(20)
        second = threading.Event()
        threading.Thread(target=elect("two", second.set).run, daemon=True).start()
        assert not second.wait(3), "two lead at once"
        assert "one" in core.read_namespaced_config_map("python-lock", "default").metadata.annotations[
            "control-plane.alpha.kubernetes.io/leader"]
        """)

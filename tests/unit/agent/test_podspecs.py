"""What a container is given: environment, files, resolver, security and control groups, from the pod alone."""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kubelet import env, hosts, specs
from agent.kubelet.compute import cgroups, resources
from agent.kubelet.cri import translate
from agent.kubelet.env import ConfigError, Sources
from agent.kubelet.model import DNS, SandboxSpec
from controlplane.machinery.podresources import qos_class
from tests.unit.agent.pods import pod

NODE = specs.Node("n1", ("10.0.0.1",), Path("/k"), Path("/logs"), ("10.96.0.10",), "cluster.local",
                  DNS(("1.1.1.1",), ("lan",), ()), 2000, 1 << 30)


def test_the_environment_is_resolved_in_order():
    sources = Sources(
        {("configmaps", "cm"): {"data": {"A": "from-cm", "ok": "1"}},
         ("secrets", "s"): {"data": {"pw": base64.b64encode(b"hunter2").decode()}}},
        ({"metadata": {"name": "kubernetes", "namespace": "default"},
          "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "protocol": "TCP"}]}},
         {"metadata": {"name": "redis-main", "namespace": "default"},
          "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 6379}]}},
         {"metadata": {"name": "other", "namespace": "elsewhere"},
          "spec": {"clusterIP": "10.96.0.8", "ports": [{"port": 1}]}}),
        pod_ips=("10.244.0.9",), allocatable={"cpu": 2000})
    container = {"name": "c", "resources": {"limits": {"memory": "64Mi"}}, "envFrom": [
        {"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "none", "optional": True}}],
        "env": [{"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
                {"name": "URL", "value": "$(PW)@$(REDIS_MAIN_SERVICE_HOST) $(NOPE) $$(PW)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}]}
    the_pod = pod(container)
    made = env.build(the_pod, container, sources)
    assert (made["P_A"], made["PW"], made["IP"], made["CPU"], made["MEM"]) == ("from-cm", "hunter2", "10.244.0.9",
                                                                               "2", "64")
    assert made["URL"] == "hunter2@10.96.0.7 $(NOPE) $(PW)"
    assert made["KUBERNETES_PORT_443_TCP_ADDR"] == "10.96.0.1" and "OTHER_SERVICE_HOST" not in made
    assert env.references(container) == {("configmaps", "cm"), ("secrets", "s"), ("secrets", "none")}
    the_pod["spec"]["enableServiceLinks"] = False
    assert "REDIS_MAIN_SERVICE_HOST" not in env.build(the_pod, {"name": "c"}, sources)
    with pytest.raises(ConfigError, match="couldn't find key x in Secret default/s"):
        env.build(the_pod, {"name": "c", "env": [
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "x"}}}]}, sources)


@given(st.text(alphabet="ab$()\\ ", max_size=30))
def test_expansion_never_fails_and_leaves_plain_text_alone(text):
    out = env.expand(text, {"a": "1"})
    assert out == text or "$" in text
    assert env.expand(text.replace("$", "$$"), {"a": "1"}) == text


def test_hosts_and_resolver():
    the_pod = pod()
    the_pod["spec"].update(hostname="h", subdomain="sub", hostAliases=[{"ip": "1.2.3.4", "hostnames": ["a", "b"]}])
    text = hosts.render(the_pod, ("10.244.0.9",), "n1", "cluster.local", "")
    assert "10.244.0.9\th.sub.default.svc.cluster.local\th\n" in text and text.endswith("1.2.3.4\ta\tb\n")
    other = {**the_pod, "spec": {**the_pod["spec"], "hostnameOverride": "of.another.kind"}}
    assert hosts.kernel_name(other, "n1", "cluster.local") == "of.another.kind"
    assert "10.244.0.9\tof.another.kind\n" in hosts.render(other, ("10.244.0.9",), "n1", "cluster.local", "")
    dns = hosts.dns(the_pod, NODE.resolv, NODE.cluster_dns, NODE.cluster_domain)
    assert dns == DNS(("10.96.0.10",), ("default.svc.cluster.local", "svc.cluster.local", "cluster.local", "lan"),
                      ("ndots:5",))
    assert hosts.dns(the_pod, NODE.resolv, (), "cluster.local") == NODE.resolv
    the_pod["spec"].update(dnsPolicy="None", dnsConfig={"nameservers": ["9.9.9.9"], "options": [
        {"name": "ndots", "value": "2"}, {"name": "edns0"}]})
    assert hosts.dns(the_pod, NODE.resolv, NODE.cluster_dns, "x") == DNS(("9.9.9.9",), (), ("ndots:2", "edns0"))


def test_a_container_spec_says_all_the_runtime_needs():
    spec = {"name": "c", "image": "i", "command": ["run"], "args": ["--ip=$(IP)"],
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": True}],
            "securityContext": {"runAsUser": 5, "allowPrivilegeEscalation": False,
                                "capabilities": {"drop": ["ALL"], "add": ["CAP_NET_ADMIN"]}}}
    the_pod = pod(spec)
    the_pod["spec"]["securityContext"] = {"runAsUser": 1, "runAsGroup": 7, "fsGroup": 9,
                                          "seccompProfile": {"type": "RuntimeDefault"}}
    made = specs.container(the_pod, spec, NODE, Sources(pod_ips=("10.1.1.1",)), image="sha256:1", attempt=2,
                           volumes={"/v": "/host/v"})
    assert made.args == ("--ip=10.1.1.1",) and made.log_path == "c/2.log"
    assert [(m.host_path, m.container_path, m.readonly) for m in made.mounts] == [
        ("/host/v", "/v", True), ("/k/pods/u/etc-hosts", "/etc/hosts", False),
        ("/k/pods/u/containers/c/2", "/dev/termination-log", False)]
    assert (made.security.run_as_user, made.security.run_as_group, made.security.supplemental_groups) == (5, 7, (9,))
    assert made.security.add_capabilities == ("NET_ADMIN",) and made.security.no_new_privs
    assert made.security.seccomp == "RuntimeDefault" and made.security.selinux is None
    spec["securityContext"]["seLinuxOptions"] = {"type": "spc_t", "level": "s0:c1"}
    together = replace(NODE, unified=(("memory.oom.group", "1"),))
    made = specs.container(the_pod, spec, together, Sources(pod_ips=("10.1.1.1",)), image="i", attempt=0,
                           volumes={"/v": "/host/v"})
    message = translate.container_config(SandboxSpec("u", "n", "p"), made).linux
    assert message.security_context.selinux_options.type == "spc_t"
    assert dict(message.resources.unified) == {"memory.oom.group": "1"}


def test_what_the_runtime_would_ignore_is_refused():
    the_pod = pod()
    the_pod["spec"]["hostUsers"] = False
    with pytest.raises(ConfigError, match="user namespaces"):
        specs.own_users(the_pod, NODE, "")
    able = replace(NODE, user_namespaces=frozenset({"", "crun"}))
    assert specs.own_users(the_pod, able, "crun") and not specs.own_users(pod(), NODE, "")
    with pytest.raises(ConfigError, match="with the handler runc"):
        specs.own_users(the_pod, able, "runc")
    rootless = {"name": "c", "securityContext": {"runAsNonRoot": True, "runAsUser": 0}}
    with pytest.raises(ConfigError, match="breaks non-root policy"):
        specs.security(pod(rootless), rootless, NODE)
    typo = {"name": "c", "securityContext": {"capabilities": {"drop": ["cap_net_raw", "NET_RAWW"]}}}
    with pytest.raises(ConfigError, match='there is no capability "NET_RAWW"'):
        specs.security(pod(typo), typo, NODE)
    grouped = {"name": "c", "securityContext": {"runAsGroup": 7}}  # no runtime takes a group without a user
    found = [specs.security(pod(grouped), grouped, NODE, user) for user in ("", "12:3", "app")]
    assert [(s.run_as_user, s.run_as_username, s.run_as_group) for s in found] == [(0, "", 7), (12, "", 7),
                                                                                   (None, "app", 7)]


def test_mounts_are_read_only_as_deep_as_asked_and_content_of_the_api_always():
    spec = {"name": "c", "image": "i", "volumeMounts": [
        {"name": "h", "mountPath": "/h", "readOnly": True, "recursiveReadOnly": "IfPossible"},
        {"name": "m", "mountPath": "/m"}]}
    made = pod(spec)
    made["spec"]["volumes"] = [{"name": "h", "hostPath": {"path": "/"}}, {"name": "m", "configMap": {"name": "m"}}]

    def mounts(node):
        found = specs.container(made, spec, node, Sources(), image="i", attempt=0, volumes={"/h": "/", "/m": "/x"})
        return {m.container_path: (m.readonly, m.recursive) for m in found.mounts if len(m.container_path) == 2}
    assert mounts(NODE) == {"/h": (True, False), "/m": (True, False)}
    assert mounts(replace(NODE, recursive=True))["/h"] == (True, True)
    spec["volumeMounts"][0]["recursiveReadOnly"] = "Enabled"
    with pytest.raises(ConfigError, match='volume "h" requested recursive read-only mode, but it is not supported'):
        mounts(NODE)


def test_profiles_and_kernel_parameters_reach_the_runtime_in_its_own_spelling():
    assert [specs.dotted(n) for n in ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced", "net/ipv4/conf/eth0.100/x",
                                      "net.ipv4.conf.eth0/100.x")] == [
        "kernel.shm_rmid_forced", "kernel.shm_rmid_forced", "net.ipv4.conf.eth0/100.x", "net.ipv4.conf.eth0/100.x"]
    armed = replace(NODE, apparmor=True)
    asked = {"name": "c", "securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}}}
    the_pod = pod(asked, "d")
    the_pod["spec"]["securityContext"] = {"appArmorProfile": {"type": "RuntimeDefault"},
                                          "supplementalGroupsPolicy": "Strict"}
    first, second = (specs.security(the_pod, c, armed) for c in the_pod["spec"]["containers"])
    assert (first.apparmor, second.apparmor, first.strict_groups) == ("Localhost:mine", "RuntimeDefault", True)
    with pytest.raises(ConfigError, match="Cannot enforce AppArmor"):
        specs.security(the_pod, asked, NODE)
    asked["securityContext"]["appArmorProfile"] = {"type": "Unconfined"}
    assert specs.security(the_pod, asked, NODE).apparmor == ""  # the field alone makes an old runtime refuse


def sized(requests=None, limits=None):
    return {"name": "c", "resources": {"requests": requests or {}, "limits": limits or {}}}


def test_classes_and_control_groups_follow_requests_and_limits(tmp_path):
    guaranteed = pod(sized(limits={"cpu": "500m", "memory": "64Mi"}))
    burstable, best = pod(sized({"cpu": "250m", "memory": "512Mi"})), pod("c")
    assert [qos_class(p["spec"]) for p in (guaranteed, burstable, best)] == ["Guaranteed", "Burstable", "BestEffort"]
    assert [cgroups.cgroup_parent(p, "kubepods", systemd=False) for p in (guaranteed, burstable)] == [
        "/kubepods/podu", "/kubepods/burstable/podu"]
    assert cgroups.cgroup_parent(best, "kubepods", systemd=True) == "kubepods-besteffort-podu.slice"
    groups, below = cgroups.Cgroups(systemd=True, mount=tmp_path), "kubepods.slice/kubepods-besteffort.slice/"
    scope = below + "kubepods-besteffort-podu.slice/cri-containerd-c1.scope"
    assert groups.folder(best, "c1") == scope
    (tmp_path / scope / "container").mkdir(parents=True)  # by crun
    assert groups.folder(best, "c1") == scope + "/container"
    made = resources.linux_resources(guaranteed, guaranteed["spec"]["containers"][0], 1 << 30)
    assert (made.cpu_shares, made.cpu_quota, made.memory_limit, made.oom_score_adj) == (512, 50_000, 64 << 20, -997)
    assert resources.oom_score(burstable, burstable["spec"]["containers"][0], 1 << 30) == 500
    assert resources.pod_resources(guaranteed).memory_limit == 64 << 20
    assert resources.pod_resources(burstable).memory_limit == 0


def test_what_a_pod_asks_for_as_a_whole_goes_before_its_containers_sums():
    whole = pod(sized({"memory": "128Mi", "cpu": "100m"}), sized() | {"name": "d"})
    whole["spec"]["resources"] = {"requests": {"cpu": "500m", "memory": "512Mi"},
                                  "limits": {"cpu": "1", "memory": "1Gi"}}
    first, second = whole["spec"]["containers"]
    assert qos_class(whole["spec"]) == "Burstable"
    made = resources.pod_resources(whole)
    assert (made.cpu_shares, made.cpu_quota, made.memory_limit) == (512, 100_000, 1 << 30)
    loose, tight = (resources.linux_resources(whole, c, 2 << 30) for c in (second, first))
    assert (loose.cpu_quota, loose.memory_limit, loose.cpu_shares, tight.cpu_shares) == (100_000, 1 << 30, 1024, 102)
    # 384Mi that no container asks for are shared out: 128 + 192 and 192 of 2048.
    assert (tight.oom_score_adj, loose.oom_score_adj) == (844, 907)
    whole["spec"]["resources"]["requests"] = whole["spec"]["resources"]["limits"]
    assert qos_class(whole["spec"]) == "Guaranteed"


def test_pod_groups_are_made_and_removed_on_both_hierarchies(tmp_path):
    the_pod = pod(sized(limits={"cpu": "1", "memory": "64Mi"}))
    for name in ("cpu", "memory", "pids", "hugetlb"):
        (tmp_path / name).mkdir()
        if name != "hugetlb":  # systemd leaves a folder for what it cannot mount
            (tmp_path / name / "cgroup.procs").touch()
    old = cgroups.Cgroups(mount=tmp_path)
    assert asyncio.run(old.make(the_pod)) == "/kubepods/podu"
    assert not any((tmp_path / "hugetlb").iterdir()) and not old.pages
    assert (tmp_path / "memory/kubepods/podu/memory.limit_in_bytes").read_text() == str(64 << 20)
    v2 = tmp_path / "two"
    v2.mkdir()
    (v2 / "cgroup.controllers").write_text("cpu memory")
    new = cgroups.Cgroups(mount=v2)
    assert (old.unified(), new.unified()) == ((), (("memory.oom.group", "1"),))
    (v2 / "init.scope").mkdir()
    (v2 / "init.scope/memory.swap.max").write_text("max")
    assert new.unified()[1:] == (("memory.swap.max", "0"),)
    asyncio.run(new.make(the_pod))
    assert (v2 / "kubepods/podu/cpu.max").read_text() == "100000 100000"
    for file in (v2 / "kubepods/podu").iterdir():
        file.unlink()  # a real group's files vanish with it
    asyncio.run(new.remove("u"))
    assert not (v2 / "kubepods/podu").exists() and (v2 / "kubepods").exists()


def test_huge_pages_and_overhead_reach_the_runtime():
    huge = sized(limits={"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi", "cpu": "1"})
    assert resources.linux_resources(pod(huge), huge, 1 << 30).hugepages == (("1GB", 1 << 30), ("2MB", 4 << 20))
    heavy = pod(sized(limits={"cpu": "500m", "memory": "64Mi"}))
    heavy["spec"]["overhead"] = {"cpu": "250m", "memory": "32Mi"}
    made = specs.sandbox(heavy, NODE, 0, "/kubepods")
    assert (made.overhead.cpu_shares, made.overhead.memory_limit) == (256, 32 << 20)
    assert made.resources.memory_limit == 96 << 20


def test_the_pods_group_has_room_for_its_worst_moment():
    def limited(name, memory, **more):
        return {"name": name, "resources": {"limits": {"memory": memory}, "requests": {"memory": memory}}, **more}
    made = pod(limited("c", "50Mi"), init=(limited("side", "100Mi", restartPolicy="Always"), limited("init", "200Mi")))
    assert resources.pod_resources(made).memory_limit == 300 << 20  # the init container runs beside the sidecar
    made["spec"]["containers"].append({"name": "free"})
    assert resources.pod_resources(made).memory_limit == 0


def test_a_controller_that_is_not_handed_down_is_passed_over(tmp_path, monkeypatch):
    def refused(path, text):  # as control groups answer to whoever would make a file
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", refused)
    cgroups._write(tmp_path / "hugetlb.2MB.max", "0")
    (tmp_path / "memory.max").touch()
    with pytest.raises(PermissionError):
        cgroups._write(tmp_path / "memory.max", "1")


@pytest.mark.parametrize("rate, wrong", [
    (None, ""), ("10M", ""), ("1k", ""), ("1P", ""), ("10X", "quantities must match"), ("", "quantities"),
    ("100", "resource is unreasonably small (< 1kbit)"), ("2P", "resource is unreasonably large (> 1Pbit)")])
def test_a_rate_that_no_runtime_takes(rate: str | None, wrong: str) -> None:
    """One that the runtime is asked for keeps it from removing the sandbox."""
    made = pod("c")
    made["metadata"]["annotations"] = {} if rate is None else {"kubernetes.io/egress-bandwidth": rate}
    if not wrong:
        specs.check_bandwidth(made)
        return
    with pytest.raises(ConfigError, match=re.escape(wrong)):
        specs.check_bandwidth(made)
    made["spec"]["hostNetwork"] = True
    specs.check_bandwidth(made)

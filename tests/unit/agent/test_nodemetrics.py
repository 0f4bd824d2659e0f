"""What the kubelet tells of the use of its node: from the kernel's files to objects and to Prometheus' text."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

from agent.kubelet.compute.cgroups import Cgroups
from agent.kubelet.pressure.victims import Use
from agent.kubelet.serving.metrics import Metrics
from agent.kubelet.serving.stats import Stats
from agent.kubelet.serving.usage import traffic, usage_v1, usage_v2
from controlplane.machinery.clock import FakeClock
from cri_proto.tally import Tally
from tests.unit.agent.pods import pod, seen, up

NET = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    1500      10    1    2    0     0          0         0      700       5    3    4    0     0       0          0
"""  # noqa: E501 - as the kernel writes it


def test_both_cgroup_versions_say_the_same():
    new = usage_v2("usage_usec 5\nnr_periods 7\nnr_throttled 2\nthrottled_usec 9", "1000",
                   "inactive_file 300\nanon 400\nfile 500\npgfault 8", "2000\n")
    old = usage_v1("5000", "1000", "total_inactive_file 300\ntotal_rss 400\ntotal_cache 500\ntotal_pgfault 8",
                   "nr_periods 7\nnr_throttled 2\nthrottled_time 9000", "2000")
    assert new == old and (new.working_set, new.limit) == (700, 2000)
    assert usage_v2("", "1", "", "max").limit == usage_v1("0", "1", "", "", str(2**63 - 4096)).limit == 0
    (eth,) = traffic(NET)
    assert (eth.name, eth.received, eth.receive_errors, eth.sent, eth.send_errors) == ("eth0", 1500, 1, 700, 3)


PRESSURE = "some avg10=1.50 avg60=0.25 avg300=0.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=40\n"


def groups(tmp_path, *folders: str) -> Cgroups:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    for folder in folders:
        place = tmp_path / folder
        place.mkdir(parents=True)
        for name, text in (("cpu.stat", "usage_usec 2000000\n"), ("memory.current", "5000\n"), ("pids.current", "3\n"),
                           ("memory.stat", "inactive_file 1000\nanon 10\n"), ("memory.max", "9000\n"),
                           *((f"{what}.pressure", PRESSURE) for what in ("cpu", "memory", "io"))):
            (place / name).write_text(text)
    return Cgroups(mount=tmp_path)


def test_the_summary_tells_of_disk_processes_and_what_is_left(tmp_path):
    cgroups = groups(tmp_path, "kubepods/besteffort/podu/c0")
    (tmp_path / "kubepods/besteffort/podu").joinpath("cpu.stat").write_text("usage_usec 1\n")
    for name in ("memory.current", "memory.stat", "memory.max", "pids.current"):
        (tmp_path / "kubepods/besteffort/podu" / name).write_text(
            (tmp_path / "kubepods/besteffort/podu/c0" / name).read_text())
    asked = []

    async def disk(pods: Any) -> list[Use]:
        asked.append(len(pods))
        return [Use(disk=900, containers={"c": 700}, logs={"c": 200}, volumes={"e": 50})]

    accounting: Any = SimpleNamespace(disk=disk)
    stats = Stats("n", lambda: [(pod(), seen(up("c")))], cgroups, FakeClock(), accounting, tmp_path)
    summary = asyncio.run(stats.summary())
    asyncio.run(stats.summary())
    told, container = summary["pods"][0], summary["pods"][0]["containers"][0]
    assert asked == [1]  # measured once, the second answer is young enough
    assert container["memory"]["availableBytes"] == 5000 and container["memory"]["workingSetBytes"] == 4000
    assert (container["rootfs"]["usedBytes"], container["logs"]["usedBytes"]) == (500, 200)
    assert told["ephemeral-storage"]["usedBytes"] == 900 and told["volume"][0]["usedBytes"] == 50
    assert told["process_stats"] == {"process_count": 3}
    waited = {"some": {"avg10": 1.5, "avg60": 0.25, "avg300": 0.0, "total": 2500000},
              "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 40}}
    assert [container[what]["psi"] for what in ("cpu", "memory", "io")] == [waited] * 3
    assert summary["node"]["fs"]["capacityBytes"] > summary["node"]["fs"]["availableBytes"] > 0
    assert summary["node"]["rlimit"]["curproc"] > 0 and summary["node"]["nodeName"] == "n"


def test_metrics_carry_upstreams_names_and_labels(tmp_path):
    cgroups = groups(tmp_path, "kubepods/besteffort/podu/c0")
    tally = Tally()
    tally.of("RunPodSandbox").add(0.011, failed=False)
    tally.of("UpdateContainerResources").add(400.0, failed=True)
    metrics = Metrics("n", lambda: [(pod(), seen(up("c")))], cgroups, FakeClock(), lambda: {"memory.available": 2},
                      lambda: [(pod(), {("c", "liveness", "successful"): 4})], tally,
                      (ends := Counter[tuple[str, str, str]]()))
    ends["container", "139", "Error"] += 3  # it is counted on
    where = 'namespace="default",pod="p"'
    assert f'container_cpu_usage_seconds_total{{container="c",{where}}} 2 ' in metrics.resource()
    text = metrics.cadvisor()
    assert re.search(r'container_pressure_memory_waiting_seconds_total{container="c",[^}]*} 2.5$', text, re.MULTILINE)
    assert re.search(r'container_pressure_io_stalled_seconds_total{container="c",[^}]*} 4e-05$', text, re.MULTILINE)
    assert f'name="c0",{where}}} 4000' in text and "container_memory_working_set_bytes" in text
    assert 'kubelet_evictions{eviction_signal="memory.available"} 2' in metrics.kubelet()
    told = metrics.kubelet([{"name": "v", "pvcRef": {"namespace": "a", "name": "b"}, "usedBytes": 7}] * 2).splitlines()
    assert [line for line in told if line.startswith("kubelet_volume_stats")] == [
        'kubelet_volume_stats_used_bytes{namespace="a",persistentvolumeclaim="b"} 7']
    assert 'kubelet_terminated_containers_total{container_type="container",exit_code="139",reason="Error"} 3' in told
    operations = "kubelet_runtime_operations"
    assert f'{operations}_errors_total{{operation_type="update_container"}} 1' in told
    assert f'{operations}_total{{operation_type="run_podsandbox"}} 1' in told
    assert [line.rpartition(" ")[2] for line in told if "bucket" in line and "run_podsandbox" in line] == [
        "0", *["1"] * 14]
    assert f'{operations}_duration_seconds_bucket{{operation_type="update_container",le="+Inf"}} 1' in told
    assert metrics.probes().splitlines()[-1] == (
        f'prober_probe_total{{container="c",{where},pod_uid="u",probe_type="Liveness",result="successful"}} 4')

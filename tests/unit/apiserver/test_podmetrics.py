"""The Metrics API: from two looks at a node to what `kubectl top` shows."""

from __future__ import annotations

from controlplane.apiserver.podmetrics import Sample, amounts, parse, usage

TEXT = """# HELP node_cpu_usage_seconds_total CPU
node_cpu_usage_seconds_total {cpu} {stamp}
node_memory_working_set_bytes 2.5e+09 {stamp}
container_cpu_usage_seconds_total{{container="c",namespace="a",pod="p"}} {cpu} {stamp}
container_memory_working_set_bytes{{container="c",namespace="a",pod="p"}} 4194304 {stamp}
container_start_time_seconds{{container="c",namespace="a",pod="p"}} {start} {stamp}
resource_scrape_error 0
"""
ME = ("a", "p", "c")


def look(at: float, cpu: float, start: float = 10.0) -> Sample:
    return parse(TEXT.format(cpu=cpu, start=start, stamp=int(at * 1000)), 0.0)


def test_usage_is_the_rate_between_two_looks() -> None:
    made = usage(look(100.0, 5.0), look(102.0, 6.0))
    assert amounts(made[ME]) == {"cpu": "500000000n", "memory": "4096Ki"} and made[ME].window == 2.0
    assert made["", "", ""].cores == 0.5


def test_a_container_that_began_between_counts_from_its_start() -> None:
    made = usage(look(100.0, 50.0), look(102.0, 0.25, start=101.0))
    assert made[ME].cores == 0.25 and made[ME].window == 1.0


def test_without_a_base_the_node_shows_nothing_rather_than_a_guess() -> None:
    assert ("", "", "") not in usage(None, look(100.0, 5.0))
    assert usage(look(100.0, 5.0), look(102.0, 4.0)) == {}  # the counter went back and the start did not move
    assert parse("garbage\n{}\nnode_x 1", 3.0) == Sample(3.0)

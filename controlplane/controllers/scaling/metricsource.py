"""Where an autoscaler's figures come from: the resource, custom and external metrics APIs.

Owns their paths and the reading of their answers into thousandths. Promises that an API that is not there, or has
nothing to tell, is an ApiError in words users know. Keeps nothing. Called by `autoscaler`.

Upstream: pkg/controller/podautoscaler/metrics/client.go, k8s.io/metrics.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import orjson

from controlplane.client.rest import Client
from controlplane.controllers.scaling.proposals import Sample
from controlplane.machinery import quantity
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.errors import ApiError
from controlplane.machinery.resources import Resource

RESOURCE = "/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods"
CUSTOM = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{}/"
EXTERNAL = "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/"
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

Obj = dict[str, Any]


def seconds(duration: str) -> float:
    """Seconds of a Go duration such as `1m30.5s`."""
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9.]+)(ns|us|µs|ms|s|m|h)", duration))


def milli(text: Any) -> int:
    return quantity.parse(str(text)).milli()


def pod_samples(items: list[Obj], resource: str, container: str) -> dict[str, Sample]:
    """By pod, the sum over its containers (or of one); pods of which one container has no figure are left out."""
    found: dict[str, Sample] = {}
    for item in items:
        usages = [one.get("usage") or {} for one in item.get("containers") or ()
                  if not container or one.get("name") == container]
        if usages and all(resource in usage for usage in usages):
            found[item["metadata"]["name"]] = Sample(
                sum(milli(usage[resource]) for usage in usages), parse_rfc3339(item["timestamp"]),
                seconds(item.get("window") or "60s"))
    return found


class MetricSource:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def _items(self, path: str, api: str, **selectors: str) -> list[Obj]:
        query = "&".join(f"{key}={quote(text)}" for key, text in selectors.items() if text)
        try:
            body = await self._client.raw("GET", f"{path}?{query}" if query else path,
                                          headers={"Accept": "application/json"})
        except ApiError as error:
            raise ApiError(f"unable to fetch metrics from {api} metrics API: {error.message}") from error
        items: list[Obj] = (orjson.loads(body).get("items")) or []
        if not items:
            raise ApiError(f"no metrics returned from {api} metrics API")
        return items

    async def resource(self, namespace: str, selector: str, resource: str, container: str) -> dict[str, Sample]:
        """The pods' use of `cpu` or `memory`."""
        items = await self._items(RESOURCE.format(namespace), "resource", labelSelector=selector)
        return pod_samples(items, resource, container)

    async def pods(self, namespace: str, selector: str, metric: str, labels: str) -> dict[str, Sample]:
        items = await self._items(CUSTOM.format(namespace) + f"pods/*/{metric}", "custom", labelSelector=selector,
                                  metricLabelSelector=labels)
        return {item["describedObject"]["name"]: Sample(milli(item["value"]), parse_rfc3339(item["timestamp"]),
                                                        float(item.get("windowSeconds") or 60)) for item in items}

    async def object(self, namespace: str, resource: Resource, name: str, metric: str, labels: str) -> int:
        """Thousandths of one object's metric."""
        what = f"metrics/{metric}" if resource.name == "namespaces" else f"{resource.name}/{name}/{metric}"
        items = await self._items(CUSTOM.format(namespace) + what, "custom", metricLabelSelector=labels)
        return milli(items[0]["value"])

    async def external(self, namespace: str, metric: str, labels: str) -> int:
        """Thousandths of all series of the metric together."""
        items = await self._items(EXTERNAL.format(namespace) + metric, "external", labelSelector=labels)
        return sum(milli(item["value"]) for item in items)

"""Where the server itself reaches a Service: slices first, then Endpoints, then the cluster IP."""

import pytest

from controlplane.apiserver.services.servicebackends import NowhereToCall, locate, ready
from tests.unit.apiserver.edge import make_context, put, running

SERVICE = {"metadata": {"name": "web", "namespace": "ns"}, "spec": {
    "clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}]}}
ENDPOINTS = {"metadata": {"name": "web", "namespace": "ns"}, "subsets": [
    {"notReadyAddresses": [{"ip": "10.0.0.1"}], "ports": [{"name": "http", "port": 8080}]},
    {"addresses": [{"ip": "10.0.0.2"}], "ports": [{"name": "http", "port": 8080}, {"name": "more", "port": 1}]}]}
LABELS = {"kubernetes.io/service-name": "web"}
SLICE = {"metadata": {"name": "web-2", "namespace": "ns", "labels": LABELS},
         "ports": [{"name": "http", "port": 8081}], "endpoints": [
             {"addresses": ["10.0.0.1"], "conditions": {"ready": False}}, {"addresses": ["10.0.0.3"]}]}
WAITING = {**SLICE, "metadata": {**SLICE["metadata"], "name": "web-1"}, "endpoints": SLICE["endpoints"][:1]}


def test_where_a_service_is_served():
    context = make_context()

    async def play():
        await put(context, "services", SERVICE)
        assert locate(context.cache, "ns", "web", 80) == [("10.96.0.9", 80)], "nothing knows of endpoints"
        await put(context, "endpointslices.discovery.k8s.io", WAITING)
        assert ready(context.cache, "ns", "web", "http") == []
        with pytest.raises(NowhereToCall, match='no endpoints available for service "web"'):
            locate(context.cache, "ns", "web", 80)
        await put(context, "endpoints", ENDPOINTS)
        assert ready(context.cache, "ns", "web", "http") == [("10.0.0.2", 8080)], "its slice is not written yet"
        await put(context, "endpointslices.discovery.k8s.io", SLICE)
        assert locate(context.cache, "ns", "web", 80) == [("10.0.0.3", 8081)]
        with pytest.raises(NowhereToCall, match='no service port 81 found for service "web"'):
            locate(context.cache, "ns", "web", 81)

    running(context, play)

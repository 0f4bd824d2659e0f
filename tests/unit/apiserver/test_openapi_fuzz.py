"""schemathesis over our own OpenAPI: whatever the documents allow, and somewhat more, is answered without a 5xx."""

import asyncio
import threading
import time

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.unit.apiserver.harness import serving

schemathesis = pytest.importorskip("schemathesis")

SECONDS = 40.0  # for all requests together: what comes later is let pass
DOCUMENTS = {"api/v1": ("configmaps", "secrets", "services", "limitranges", "resourcequotas", "namespaces", "events"),
             "apis/rbac.authorization.k8s.io/v1": ("roles", "clusterrolebindings"),
             "apis/networking.k8s.io/v1": ("networkpolicies", "ingresses"),
             "apis/autoscaling/v2": ("horizontalpodautoscalers",),
             "apis/apiregistration.k8s.io/v1": ("apiservices",),
             "apis/policy/v1": ("poddisruptionbudgets",),
             "apis/admissionregistration.k8s.io/v1": ("validatingadmissionpolicies",),
             "apis/authorization.k8s.io/v1": ("subjectaccessreviews",)}
# An apply that does not fit its schema is a 500 upstream too, and a revision to come is waited for: a 504.
NOT_SENT = ("application/apply-patch+yaml",)
WAITING = ("resourceVersion", "timeoutSeconds", "watch")


class Server(threading.Thread):
    """An API server in a thread of its own."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ready, self.url = threading.Event(), ""

    def run(self):
        asyncio.run(self.serve())

    async def serve(self):
        async with serving() as api:
            self.loop, self.over, self.url = asyncio.get_running_loop(), asyncio.Event(), api.url
            self.ready.set()
            await self.over.wait()

    def stop(self):
        self.loop.call_soon_threadsafe(self.over.set)
        self.join(20)


@pytest.fixture
def url():
    server = Server()
    server.start()
    assert server.ready.wait(20)
    yield server.url
    server.stop()


def operations(url):
    """Every operation on the chosen kinds, from the documents the server gives."""
    found = []
    for name, plurals in DOCUMENTS.items():
        document = requests.get(f"{url}/openapi/v3/{name}", timeout=20).json()
        document["paths"] = {path: item for path, item in document["paths"].items() if any(
            path.endswith((f"/{plural}", f"/{plural}/{{name}}")) for plural in plurals)}
        schema = schemathesis.openapi.from_dict(document)
        found += [result.ok() for result in schema.get_all_operations()]
    assert len(found) > 60  # some seven of each kind
    return found


def test_what_the_documents_allow_is_never_a_5xx(url):
    every, until = operations(url), time.monotonic() + SECONDS
    answers = {}

    @settings(max_examples=400, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def send(data):
        case = data.draw(data.draw(st.sampled_from(every)).as_strategy())
        if time.monotonic() > until or case.media_type in NOT_SENT:  # after drawing, which must not depend on the time
            return
        case.query = {k: v for k, v in (case.query or {}).items() if k not in WAITING}
        answer = case.call(base_url=url, timeout=20)
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
        answers[answer.status_code // 100] = answers.get(answer.status_code // 100, 0) + 1
    send()
    assert answers[2] > 10 and answers[4] > 10, answers

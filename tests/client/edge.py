"""A small ingress controller that works as stock ones do: Debian's nginx, configured from what a watch tells.

Owns all that such a controller asks of a cluster, with the official client and a service account of its own: one of
several leads by a Lease; ingresses of its class, their endpoints and certificates are watched; nginx in a pod is given
a new configuration and reloaded; the address is told in the ingress' status; an admission webhook refuses what nginx
could not be told. Started by `test_ingress`: `edge.py NAME POD ADDRESS CERTIFICATE`, on the cluster's host.
"""

from __future__ import annotations

import base64
import json
import ssl
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kubernetes import client, config, stream, watch
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

SPACE = CLASS = "edge"
HOOK_PORT = 9443
LEASE, RENEW, RETRY = 4, 3, 1  # seconds: who leads, until when it must have said so again, and how often others look
SERVER = """server {{
  listen 80; {tls}
  server_name {host};
{locations}}}
"""


class Review(BaseHTTPRequestHandler):
    """Refuses paths that would end nginx's configuration early."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
        bad = [p for p in paths(request["object"]["spec"]) if set(p["path"]) & set("{};")]
        answer = {"uid": request["uid"], "allowed": not bad, "status": {"message": "nginx cannot serve this path"}}
        body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def paths(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [path for rule in spec.get("rules", ()) for path in rule["http"]["paths"]]


class Edge:
    def __init__(self, pod: str, address: str) -> None:
        self.pod, self.address = pod, address
        self.core, self.networking = client.CoreV1Api(), client.NetworkingV1Api()
        self.discovery = client.DiscoveryV1Api()
        self.changed = threading.Event()

    def follow(self, known: Callable[..., Any]) -> None:
        for _ in watch.Watch().stream(known):
            self.changed.set()

    def lead(self) -> None:
        for known in (self.networking.list_ingress_for_all_namespaces, self.core.list_secret_for_all_namespaces,
                      self.discovery.list_endpoint_slice_for_all_namespaces):
            threading.Thread(target=self.follow, args=(known,), daemon=True).start()
        given = ""
        while True:
            self.changed.wait()
            self.changed.clear()
            ingresses = [i for i in self.networking.list_ingress_for_all_namespaces().items
                         if i.spec.ingress_class_name == CLASS]
            script = self.script([client.ApiClient().sanitize_for_serialization(i) for i in ingresses])
            if script != given:
                given = script
                stream.stream(self.core.connect_get_namespaced_pod_exec, self.pod, SPACE, stderr=True, stdout=True,
                              command=["sh", "-c", script])
            for one in ingresses:
                if [i.ip for i in one.status.load_balancer.ingress or ()] != [self.address]:
                    self.networking.patch_namespaced_ingress_status(one.metadata.name, one.metadata.namespace, {
                        "status": {"loadBalancer": {"ingress": [{"ip": self.address}]}}})

    def script(self, ingresses: list[dict[str, Any]]) -> str:
        """What makes nginx serve these."""
        servers, files = [], []
        upstreams: dict[str, str] = {}
        for one in ingresses:
            space, spec = one["metadata"]["namespace"], one["spec"]
            tls = ""
            for entry in spec.get("tls", ()):
                data = self.core.read_namespaced_secret(entry["secretName"], space).data
                pem = b"".join(base64.b64decode(data[part]) for part in ("tls.crt", "tls.key")).decode()
                file = f"/etc/nginx/{space}-{entry['secretName']}.pem"
                files.append(f"cat > {file} <<'EOF'\n{pem}\nEOF\n")
                tls = f"listen 443 ssl; ssl_certificate {file}; ssl_certificate_key {file};"
            for rule in spec["rules"]:
                locations = ""
                for path in rule["http"]["paths"]:
                    name = path["backend"]["service"]["name"]
                    upstream = f"{space}-{name}"
                    ends = "".join(f" server {end};" for end in self.endpoints(space, name))
                    if ends:
                        upstreams[upstream] = f"upstream {upstream} {{{ends} }}\n"
                    way = f"proxy_pass http://{upstream}/;" if ends else "return 503;"
                    locations += f"  location {path['path']} {{ {way} }}\n"
                servers.append(SERVER.format(host=rule["host"], tls=tls, locations=locations))
        http = "".join([*upstreams.values(), *servers])
        files.append(f"cat > /etc/nginx/nginx.conf <<'EOF'\nuser www-data;\nevents {{}}\nhttp {{\n{http}}}\nEOF\n")
        return "".join(files) + "nginx -s reload\n"

    def endpoints(self, space: str, name: str) -> list[str]:
        slices = self.discovery.list_namespaced_endpoint_slice(
            space, label_selector=f"kubernetes.io/service-name={name}").items
        return sorted(f"{end.addresses[0]}:{piece.ports[0].port}" for piece in slices
                      for end in piece.endpoints or () if end.conditions.ready)


def main(name: str, pod: str, address: str, certificate: str) -> None:
    config.load_kube_config()
    edge = Edge(pod, address)

    def started() -> None:
        hooks = ThreadingHTTPServer((address, HOOK_PORT), Review)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        hooks.socket = context.wrap_socket(hooks.socket, server_side=True)
        threading.Thread(target=hooks.serve_forever, daemon=True).start()
        edge.lead()

    leaderelection.LeaderElection(electionconfig.Config(
        LeaseLock(CLASS, SPACE, name), lease_duration=LEASE, renew_deadline=RENEW, retry_period=RETRY,
        onstarted_leading=started, onstopped_leading=None)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Kubeconfigs with their credentials inside: one file is all a component or a person needs.

`render` is pure; `cluster` stores the result with mode 0600, since it contains a private key.
"""

from __future__ import annotations

import base64

from controlplane.pki.authority import Pair


def render(server: str, user: str, ca: bytes, pair: Pair, cluster: str = "pelamis") -> bytes:
    """The YAML of a kubeconfig for `user` (the certificate's common name) at `server`, an https URL."""
    context = f"{user}@{cluster}"
    return f"""\
apiVersion: v1
kind: Config
clusters:
- name: {cluster}
  cluster:
    server: {server}
    certificate-authority-data: {_text(ca)}
users:
- name: {user}
  user:
    client-certificate-data: {_text(pair.certificate)}
    client-key-data: {_text(pair.key)}
contexts:
- name: {context}
  context:
    cluster: {cluster}
    user: {user}
current-context: {context}
""".encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()

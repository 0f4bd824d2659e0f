"""A proxy in front of the API that has authenticated its users itself, and says in headers who they are.

Owns the rule whom to believe: only a connection whose certificate chain ends at the proxies' own authority, with one of
the allowed names when any are given. Promises that such a certificate is good for nothing else: its own name is nobody
here, unless its authority is that of ordinary clients too. Called by `authn`.

Upstream: k8s.io/apiserver/pkg/authentication/request/headerrequest.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from controlplane.machinery.errors import Finding

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.apiserver.config import Options


def authorities(path: Path) -> frozenset[bytes]:
    """The certificates of a PEM file in DER. Raises Finding."""
    try:
        text = path.read_text()
    except OSError as error:
        raise Finding(f"cannot read {path}: {error.strerror}", "", "give PEM certificates") from None
    end = "-----END CERTIFICATE-----"
    found = frozenset(ssl.PEM_cert_to_DER_cert(part[part.index("-----BEGIN CERTIFICATE-----"):] + end)
                      for part in text.split(end) if "-----BEGIN CERTIFICATE-----" in part)
    if not found:
        raise Finding(f"{path} holds no certificate", "", "give PEM certificates")
    return found


def root_of(tls: Any) -> bytes:
    """The DER of the authority that a verified connection's chain ends at, b"" when there is none."""
    public = getattr(tls, "get_verified_chain", None)  # Python 3.13; before that the same is there, but not on top
    if public is not None:
        chain = public()
    else:
        chain = [certificate.public_bytes(2) for certificate in tls._sslobj.get_verified_chain() or ()]  # 2: DER
    return chain[-1] if chain else b""


class FrontProxy:
    """`headers` are the lower-case names that say who the user is."""

    def __init__(self, options: Options) -> None:
        assert options.requestheader_client_ca_file is not None
        self._proxies = authorities(options.requestheader_client_ca_file)
        self._clients = authorities(options.client_ca_file) if options.client_ca_file is not None else frozenset()
        self._names = frozenset(options.requestheader_allowed_names)
        self._options = options
        self.headers = frozenset(h.lower() for h in options.requestheader_username_headers)

    def vouches(self, tls: Any, common_name: str) -> bool:
        """Whether the connection is a proxy's whose headers are believed."""
        return root_of(tls) in self._proxies and (not self._names or common_name in self._names)

    def serves_clients(self, tls: Any) -> bool:
        """Whether the connection's certificate is that of an ordinary client."""
        return root_of(tls) in self._clients

    def user(self, headers: Mapping[str, str]) -> tuple[str, str, tuple[str, ...], dict[str, list[str]]] | None:
        """Name, uid, groups and extra as the headers give them, None when they name nobody."""
        options = self._options
        name = next((headers[h] for h in options.requestheader_username_headers if headers.get(h)), "")
        if not name:
            return None
        uid = next((headers[h] for h in options.requestheader_uid_headers if headers.get(h)), "")
        wanted = {h.lower() for h in options.requestheader_group_headers}
        prefixes = tuple(p.lower() for p in options.requestheader_extra_headers_prefix)
        groups: list[str] = []
        extra: dict[str, list[str]] = {}
        for header, value in headers.items():
            lowered = header.lower()
            if lowered in wanted:
                groups.append(value)
                continue
            prefix = next((p for p in prefixes if lowered.startswith(p)), "")
            if prefix:
                extra.setdefault(unquote(lowered[len(prefix):]), []).append(value)
        return name, uid, tuple(groups), extra

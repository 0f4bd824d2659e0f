"""The flags about who is who: front proxies, bootstrap tokens and an OpenID Connect provider.

Owns their names, their defaults and the checks that need no I/O. Called by `config`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from controlplane.machinery.errors import Finding

ALGORITHMS = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512")
_LISTS = {"requestheader_allowed_names": ("", "names a front proxy's certificate may have; none: any"),
          "requestheader_username_headers": ("X-Remote-User", "headers that name the user"),
          "requestheader_uid_headers": ("", "headers that give its uid"),
          "requestheader_group_headers": ("X-Remote-Group", "headers that name its groups"),
          "requestheader_extra_headers_prefix": ("X-Remote-Extra-", "what headers with extra begin with"),
          "oidc_signing_algs": ("RS256", "algorithms accepted of tokens")}


def add(parser: argparse.ArgumentParser) -> None:
    def flag(name: str, **more: Any) -> None:
        parser.add_argument("--" + name.replace("_", "-"), **more)
    flag("requestheader_client_ca_file", type=Path, default=None, help="CA of front proxies' certificates")
    flag("proxy_client_cert_file", type=Path, default=None, help="certificate shown to aggregated API servers")
    flag("proxy_client_key_file", type=Path, default=None, help="its key")
    for name, (default, text) in _LISTS.items():
        flag(name, default=default, help=f"{text} (comma-separated, default {default or 'none'})")
    flag("enable_bootstrap_token_auth", nargs="?", const="true", default="false", choices=("true", "false"),
         help="let Secrets of type bootstrap.kubernetes.io/token authenticate")
    for name, default, text in (
            ("oidc_issuer_url", "", "https URL of an OpenID Connect provider; its ID tokens authenticate"),
            ("oidc_client_id", "", "the audience its tokens must have"),
            ("oidc_username_claim", "sub", "claim that names the user"),
            ("oidc_username_prefix", "", 'put before it; default "<issuer>#" but for email, "-" for nothing'),
            ("oidc_groups_claim", "", "claim that lists groups"), ("oidc_groups_prefix", "", "put before each")):
        flag(name, default=default, help=text)
    flag("oidc_ca_file", type=Path, default=None, help="CA of the provider, instead of the host's")
    flag("oidc_required_claim", action="append", default=[], metavar="KEY=VALUE", help="a claim tokens must have")


def finish(given: dict[str, Any]) -> None:
    """Bring what was parsed into the form of `Options`, in place. Raises Finding."""
    for name in _LISTS:
        given[name] = tuple(word for part in given[name].split(",") if (word := part.strip()))
    given["enable_bootstrap_token_auth"] = given["enable_bootstrap_token_auth"] == "true"
    pairs = [text.partition("=") for text in given.pop("oidc_required_claim")]
    given["oidc_required_claims"] = tuple((key, value) for key, _, value in pairs)
    issuer, client = given["oidc_issuer_url"], given["oidc_client_id"]
    if (issuer or client) and not (issuer.startswith("https://") and client):
        raise Finding("--oidc-issuer-url and --oidc-client-id belong together", "the issuer is an https URL",
                      "give both, or neither")
    if unknown := [a for a in given["oidc_signing_algs"] if a not in ALGORITHMS]:
        raise Finding(f"--oidc-signing-algs knows no {unknown[0]}", "", "use any of " + ", ".join(ALGORITHMS))
    if any(not key or not sign for key, sign, _ in pairs):
        raise Finding("--oidc-required-claim is no key=value", "", "give it as --oidc-required-claim=hd=example.com")

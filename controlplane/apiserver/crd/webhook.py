"""Calls to a webhook: one POST of JSON over TLS to a URL, or to a Service by its cluster IP.

Owns where a client configuration leads and who is trusted there: the given caBundle, else the system's authorities.
A Service is looked up in the store and called at its cluster IP under the name `<service>.<namespace>.svc`, which its
certificate must carry; no DNS takes part. Promises an answer of bounded size within the time given, or `CallFailed`
with upstream's text. Opens a connection per call: conversions and admissions are rare, and a kept connection would
outlive the endpoint behind the address. Called by conversion.

Upstream: k8s.io/apiserver/pkg/util/webhook.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from controlplane.store.cache import Cache

MAX_ANSWER = 32 << 20  # bytes: a review of a whole list comes back at once; upstream bounds it by the request's 3 MiB
CA_KEPT = 64  # TLS contexts, one per CA bundle in use; about 50 kB each
Object = dict[str, Any]


class CallFailed(Exception):  # noqa: N818 - what it means for the request is the caller's to say
    """The webhook could not be called, or did not answer properly; the text says why."""


@lru_cache(CA_KEPT)
def _trust(bundle: str) -> ssl.SSLContext:
    if not bundle:
        return ssl.create_default_context()
    try:
        text = base64.b64decode(bundle).decode()
        context = ssl.create_default_context(cadata=text)
    except (ValueError, ssl.SSLError) as error:
        raise CallFailed(f"unable to load root certificates: {error}") from None
    if hasattr(ssl, "VERIFY_X509_STRICT"):  # self-made authorities of webhooks often lack key identifiers
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _place(config: Object, cache: Cache) -> tuple[str, str, str]:
    """(URL to call, URL to name in messages, the host name its certificate must carry). Raises CallFailed."""
    if config.get("url"):
        return config["url"], config["url"], ""
    service = config.get("service") or {}
    namespace, name = service.get("namespace") or "", service.get("name") or ""
    port, path = service.get("port") or 443, (service.get("path") or "/").lstrip("/")
    item = cache.get(f"services/{namespace}/{name}")
    host = f"{name}.{namespace}.svc"
    told = f"https://{host}:{port}/{path}"
    if item is None:
        raise CallFailed(f'Post "{told}": service "{name}" not found')
    address = (item.obj.get("spec") or {}).get("clusterIP")
    if not address or address == "None":
        raise CallFailed(f'Post "{told}": cannot resolve the service "{name}": it has no cluster IP')
    shown = f"[{address}]" if ":" in address else address
    return f"https://{shown}:{port}/{path}", told, host


async def post(config: Object, body: Object, seconds: float, cache: Cache) -> Object:
    """The decoded answer of a webhook. Raises CallFailed."""
    import aiohttp
    url, told, host = _place(config, cache)
    told = f"{told}?timeout={seconds:g}s"
    headers = {"Content-Type": "application/json", "Accept": "application/json",
               "User-Agent": "kube-apiserver-admission"}
    if host:
        headers["Host"] = host
    try:
        async with asyncio.timeout(seconds), aiohttp.ClientSession(connector=aiohttp.TCPConnector(
                force_close=True, ssl=_trust(config.get("caBundle") or ""))) as session, session.post(
                f"{url}{'&' if '?' in url else '?'}timeout={seconds:g}s", data=orjson.dumps(body), headers=headers,
                server_hostname=host or None, allow_redirects=False) as answer:
            raw = await answer.content.read(MAX_ANSWER + 1)
            while not answer.content.at_eof() and len(raw) <= MAX_ANSWER:
                raw += await answer.content.read(MAX_ANSWER + 1 - len(raw))
            if answer.status != 200:
                raise CallFailed(f"the server responded with the status code {answer.status} but did not return more "
                                 "details")
    except TimeoutError:
        raise CallFailed(f'Post "{told}": context deadline exceeded') from None
    except (aiohttp.ClientError, OSError) as error:
        raise CallFailed(f'Post "{told}": {error}') from None
    if len(raw) > MAX_ANSWER:
        raise CallFailed(f"the answer exceeds {MAX_ANSWER} bytes")
    try:
        made = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise CallFailed(f"the answer is not JSON: {error}") from None
    if not isinstance(made, dict):
        raise CallFailed("the answer is no object")
    return made

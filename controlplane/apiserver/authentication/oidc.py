"""Users of an OpenID Connect provider: their ID tokens, verified by the provider's published keys.

Owns the keys, the rules about claims and the names users and groups get here. Promises that verifying waits for nobody:
keys are fetched beside the requests, at start, when a token names a key that is unknown, and when a token is used and
they are old; until there are keys such a token is refused like any other that cannot be verified. Fetches no more
often than every `RETRY_SECONDS`, and nothing while no token comes. Verified tokens are remembered by their hash, for a
bounded number, until they expire. Called by `authn`; the server runs `run`.

Upstream: staging/src/k8s.io/apiserver/plugin/pkg/authenticator/token/oidc.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING, Any

import orjson

from controlplane.apiserver.authentication.verified import Verified

if TYPE_CHECKING:
    from controlplane.apiserver.config import Options
    from controlplane.machinery.clock import Clock

LOG = logging.getLogger("apiserver")
RETRY_SECONDS = 10.0  # between fetches: a provider that is away, or tokens with invented key ids, must not make a storm
FRESH_SECONDS = 600.0  # keys older than this are fetched anew when a token is used; providers announce keys for longer
FETCH_SECONDS = 10.0  # of one answer
MAX_DOCUMENT = 1 << 20  # bytes of one answer
Claims = dict[str, Any]
Identity = tuple[str, tuple[str, ...], dict[str, list[str]]]
CREDENTIAL = "authentication.kubernetes.io/credential-id"


class Oidc:
    """One provider."""

    def __init__(self, options: Options, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._keys: dict[str, Any] = {}
        self._fetched = -FRESH_SECONDS
        self._wanted = asyncio.Event()
        self._wanted.set()  # the first fetch is at start
        self.ready = asyncio.Event()
        self._verified = Verified(clock, self._verify)

    # --- tokens ------------------------------------------------------------------------------------------------

    def user(self, text: str) -> Identity | None:
        """Name, groups and extra of the user a token was issued to, None when it does not hold."""
        if text.count(".") != 2:
            return None
        claims = self._verified.claims(text)
        return identity(claims, self._options) if claims is not None else None

    def _verify(self, text: str) -> Claims | None:
        import jwt
        options = self._options
        try:
            head = jwt.get_unverified_header(text)
            body = jwt.decode(text, options={"verify_signature": False})
        except jwt.PyJWTError:
            return None
        if body.get("iss") != options.oidc_issuer_url or head.get("alg") not in options.oidc_signing_algs:
            return None  # somebody else's token: no reason to ask the provider
        if self._clock.monotonic() - self._fetched > FRESH_SECONDS:
            self._wanted.set()
        key = self._keys.get(head.get("kid") or "")
        if key is None:
            self._wanted.set()
            return None
        try:  # times are checked by our clock at every use
            claims: Claims = jwt.decode(
                text, key, list(options.oidc_signing_algs), audience=options.oidc_client_id,
                issuer=options.oidc_issuer_url, options={"require": ["iss", "aud", "exp"], "verify_exp": False,
                                                         "verify_nbf": False, "verify_iat": False})
        except jwt.PyJWTError as error:
            LOG.info("an OpenID token was refused: %s", type(error).__name__)
            return None
        return claims

    # --- keys --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Fetch keys whenever they are wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                self._keys = await self._fetch()
                self._fetched = self._clock.monotonic()
                self.ready.set()
            except (OSError, ValueError, KeyError, TypeError, TimeoutError) as error:
                LOG.warning("cannot fetch the keys of %s: %s", self._options.oidc_issuer_url, error)
                if not self._keys:
                    self._wanted.set()  # without any key nobody can come in: try again without being asked
            await self._clock.sleep(RETRY_SECONDS)

    async def _fetch(self) -> dict[str, Any]:
        """The provider's keys by their id; aiohttp's errors become OSErrors or ValueErrors."""
        import aiohttp
        import jwt
        issuer = self._options.oidc_issuer_url
        ca = self._options.oidc_ca_file
        tls = ssl.create_default_context(cafile=str(ca) if ca is not None else None)
        bound = aiohttp.ClientTimeout(total=FETCH_SECONDS)
        try:
            async with aiohttp.ClientSession(timeout=bound, trust_env=True) as session:
                about = await _document(session, issuer.rstrip("/") + "/.well-known/openid-configuration", tls)
                if about["issuer"] != issuer:
                    raise ValueError(f"it calls itself {about['issuer']!r}")
                listed = await _document(session, about["jwks_uri"], tls)
        except aiohttp.ClientError as error:
            raise OSError(str(error) or type(error).__name__) from error
        found = {}
        for entry in listed["keys"]:
            if entry.get("use", "sig") != "sig" or entry.get("kty") not in ("RSA", "EC"):
                continue
            try:
                found[entry.get("kid", "")] = jwt.PyJWK(entry).key
            except jwt.PyJWTError:
                continue  # a kind of key we do not know
        if not found:
            raise ValueError("it publishes no usable key")
        return found


async def _document(session: Any, url: str, tls: ssl.SSLContext) -> Any:
    async with session.get(url, ssl=tls, allow_redirects=False) as answer:
        if answer.status != 200:
            raise ValueError(f"{url} answered {answer.status}")
        text = await answer.content.read(MAX_DOCUMENT + 1)
    if len(text) > MAX_DOCUMENT:
        raise ValueError(f"{url} answered more than {MAX_DOCUMENT} bytes")
    return orjson.loads(text)


def identity(claims: Claims, options: Options) -> Identity | None:
    """The user of verified claims, None when the claims this server needs are missing. Pure."""
    if any(claims.get(name) != value for name, value in options.oidc_required_claims):
        return None
    claim, prefix = options.oidc_username_claim, options.oidc_username_prefix
    name = claims.get(claim)
    if not isinstance(name, str) or not name:
        return None
    if claim == "email" and claims.get("email_verified", True) is not True:
        return None
    if prefix == "":  # a bare number of one provider must not be taken for a user of another kind
        prefix = "" if claim == "email" else options.oidc_issuer_url + "#"
    groups = claims.get(options.oidc_groups_claim) if options.oidc_groups_claim else None
    listed = [groups] if isinstance(groups, str) else groups or []
    if not isinstance(listed, list) or not all(isinstance(group, str) for group in listed):
        return None
    identifier = claims.get("jti")
    return ("" if prefix == "-" else prefix) + name, tuple(options.oidc_groups_prefix + g for g in listed), \
        {CREDENTIAL: [f"JTI={identifier}"]} if isinstance(identifier, str) and identifier else {}

"""Service-account tokens: signed with the cluster's key, bound to objects, checked against them at every use.

Owns the form of the JWT, the TokenRequest's rules and the two OpenID discovery documents. Promises: a token is good
only while its service account, and the pod or secret it is bound to, exist with the same uid and were not to be gone a
minute ago; a token's text is never logged or kept (verified claims are remembered under its hash, for a bounded number
of tokens, and expire with it). It makes no object. Called by `authn` for bearer tokens and by `reviews` for
TokenRequest and TokenReview.

Upstream: k8s.io/kubernetes/pkg/serviceaccount.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import orjson

from controlplane.apiserver.authentication.verified import Verified
from controlplane.machinery.clock import Clock, parse_rfc3339, rfc3339
from controlplane.machinery.errors import BadRequest, Conflict, Finding, Invalid, MethodNotAllowed, NotFound, invalid
from controlplane.store.cache import key_of

if TYPE_CHECKING:
    from controlplane.apiserver.context import Context
    from controlplane.apiserver.request import Request
    from controlplane.apiserver.response import Response

USER_PREFIX = "system:serviceaccount:"
DEFAULT_SECONDS = 3600
MIN_SECONDS = 600
MAX_SECONDS = 1 << 32
WARNED_SECONDS = 3607  # a token mounted in every pod: it lives a year, for programs that read its file but once
EXTENDED_SECONDS = 365 * 24 * 3600
LEEWAY_SECONDS = 60.0  # a pod that ends goes on using its token while it winds up
CLAIM = "kubernetes.io"
Claims = dict[str, Any]
_PUBLIC_KEY = re.compile(rb"-----BEGIN (?:RSA )?PUBLIC KEY-----.*?-----END (?:RSA )?PUBLIC KEY-----", re.S)
_BINDABLE = {"Pod": "pods", "Secret": "secrets", "Node": "nodes"}


class Reader(Protocol):
    """Objects by plural of the core group. Never change what it returns."""

    def __call__(self, plural: str, namespace: str, name: str) -> dict[str, Any] | None: ...


def user_of(claims: Claims) -> tuple[str, str, tuple[str, ...], dict[str, list[str]]]:
    """Name, uid, groups and extra of the service account that verified claims speak for."""
    about = claims[CLAIM]
    namespace, account = about["namespace"], about["serviceaccount"]
    extra = {"authentication.kubernetes.io/credential-id": [f"JTI={claims['jti']}"]} if claims.get("jti") else {}
    for kind in ("pod", "node"):
        if bound := about.get(kind):
            extra[f"authentication.kubernetes.io/{kind}-name"] = [bound["name"]]
            extra[f"authentication.kubernetes.io/{kind}-uid"] = [bound["uid"]]
    return f"{USER_PREFIX}{namespace}:{account['name']}", account["uid"], groups_of(namespace), extra


def groups_of(namespace: str) -> tuple[str, ...]:
    return "system:serviceaccounts", f"system:serviceaccounts:{namespace}"


class Keys(NamedTuple):
    """What signs, and by key id what verifies: public key and algorithm. The first is the signing key's own half."""

    private: Any
    identifier: str
    public: dict[str, tuple[Any, str]]

    @property
    def algorithm(self) -> str:
        return self.public[self.identifier][1]


def load_keys(signing: Path, verifying: Path | None) -> Keys:
    """The key in `signing`, and all public keys in `verifying`: an older one there keeps its tokens good while a new
    one takes over. Raises Finding."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    try:
        private = serialization.load_pem_private_key(signing.read_bytes(), None)
        texts = _PUBLIC_KEY.findall(verifying.read_bytes()) if verifying is not None else []
        found = [private.public_key(), *(serialization.load_pem_public_key(text) for text in texts)]
    except (OSError, ValueError, TypeError) as error:
        raise Finding(f"{signing} or {verifying} is no usable key: {error}", "no pod can get a token without it",
                      "point --service-account-signing-key-file at an unencrypted PEM private key, and "
                      "--service-account-key-file at PEM public keys") from None
    public: dict[str, tuple[Any, str]] = {}
    for key in found:
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        algorithm = "ES256" if isinstance(key, ec.EllipticCurvePublicKey) else "RS256"
        public[_base64(hashlib.sha256(der).digest())] = key, algorithm
    return Keys(private, next(iter(public)), public)


class Tokens:
    """Signs with one key; verifies with its public half and with those of keys that signed before."""

    def __init__(self, key_file: Path, issuer: str, read: Reader, clock: Clock,
                 public_file: Path | None = None) -> None:
        self.issuer = issuer
        self._read = read
        self._clock = clock
        self._files = key_file, public_file
        self._loaded: Keys | None = None
        self._verified = Verified(clock, self._decode)

    def _keys(self) -> Keys:
        """The keys, read at first use, since the libraries are heavy."""
        if self._loaded is None:
            self._loaded = load_keys(*self._files)
        return self._loaded

    def sign(self, namespace: str, account: dict[str, Any], audiences: list[str], seconds: int,
             bound: dict[str, dict[str, str]], warn_after: int = 0) -> tuple[str, float]:
        """A token and the wall time it expires at. `bound` holds `pod`, `node` or `secret` -> name and uid;
        `warn_after` seconds of its use are expected, any more is told by a claim."""
        import jwt
        keys = self._keys()
        now = int(self._clock.now())
        subject = account["metadata"]
        claims = {"iss": self.issuer, "sub": f"{USER_PREFIX}{namespace}:{subject['name']}", "aud": audiences,
                  "exp": now + seconds, "iat": now, "nbf": now, "jti": self._clock.uid(),
                  CLAIM: {"namespace": namespace,
                          "serviceaccount": {"name": subject["name"], "uid": subject["uid"]}, **bound,
                          **({"warnafter": now + warn_after} if warn_after else {})}}
        head = {"kid": keys.identifier, "typ": None}
        return jwt.encode(claims, keys.private, keys.algorithm, head), now + seconds

    def verify(self, text: str, audiences: list[str]) -> Claims | None:
        """The claims of a valid token that is meant for one of `audiences` (empty: for this server), else None."""
        claims = self._verified.claims(text)
        if claims is None:
            return None
        return claims if self.common(claims, audiences) and self._alive(claims) else None

    def common(self, claims: Claims, audiences: list[str]) -> list[str]:
        return [a for a in (audiences or [self.issuer]) if a in claims["aud"]]

    def _decode(self, text: str) -> Claims | None:
        if text.count(".") != 2:
            return None
        import jwt
        required = ["iss", "sub", "aud", "exp", "nbf"]
        try:  # times are checked by our clock at every use, audiences against what each caller asks for
            public, algorithm = self._keys().public[jwt.get_unverified_header(text).get("kid", "")]
            claims: Claims = jwt.decode(text, public, [algorithm], issuer=self.issuer, options={
                "require": required, "verify_aud": False, "verify_exp": False, "verify_nbf": False,
                "verify_iat": False})
        except (jwt.PyJWTError, KeyError):
            return None
        return claims if isinstance(claims["aud"], list) and CLAIM in claims else None

    def _alive(self, claims: Claims) -> bool:
        about = claims[CLAIM]
        namespace = about["namespace"]
        wanted = [("serviceaccounts", namespace, about["serviceaccount"])]
        wanted += [(f"{kind}s", namespace, about[kind]) for kind in ("pod", "secret") if kind in about]
        if "node" in about and "pod" not in about:  # a bound pod outlives its node's object for a while
            wanted.append(("nodes", "", about["node"]))
        for plural, place, reference in wanted:
            found = self._read(plural, place, reference["name"])
            if found is None or found["metadata"].get("uid") != reference["uid"]:
                return False
            ending = found["metadata"].get("deletionTimestamp")
            if ending and parse_rfc3339(ending) + LEEWAY_SECONDS < self._clock.now():
                return False
        return True

    def request(self, namespace: str, account: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
        """Answer a TokenRequest for `account` (a ServiceAccount): the request with its status. Raises ApiErrors."""
        spec = dict(asked.get("spec") or {})
        seconds = DEFAULT_SECONDS if spec.get("expirationSeconds") is None else spec["expirationSeconds"]
        if seconds < MIN_SECONDS:
            raise Invalid.of("TokenRequest", "", [invalid("spec.expirationSeconds", seconds,
                             "may not specify a duration less than 10 minutes")], "authentication.k8s.io")
        if seconds > MAX_SECONDS:
            raise Invalid.of("TokenRequest", "", [invalid("spec.expirationSeconds", seconds,
                             "may not specify a duration larger than 2^32 seconds")], "authentication.k8s.io")
        audiences = spec.get("audiences") or [self.issuer]
        bound = self._bind(namespace, account, spec.get("boundObjectRef"))
        extended = seconds == WARNED_SECONDS and "pod" in bound and audiences == [self.issuer]
        text, expires = self.sign(namespace, account, audiences, EXTENDED_SECONDS if extended else seconds, bound,
                                  seconds if extended else 0)
        if extended:  # the holder is to renew it in time all the same
            expires -= EXTENDED_SECONDS - seconds
        metadata = {"name": account["metadata"]["name"], "namespace": namespace,
                    "creationTimestamp": self._clock.timestamp()}
        return {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": metadata,
                "spec": {**spec, "audiences": audiences, "expirationSeconds": seconds},
                "status": {"token": text, "expirationTimestamp": rfc3339(expires)}}

    def _bind(self, namespace: str, account: dict[str, Any],
              reference: dict[str, Any] | None) -> dict[str, dict[str, str]]:
        if not reference:
            return {}
        kind, name = reference.get("kind", ""), reference.get("name", "")
        if kind not in _BINDABLE or reference.get("apiVersion", "v1") != "v1":
            group = reference.get("apiVersion", "")
            raise BadRequest(f"cannot bind token to object of type {'/' if '/' not in group else ''}{group}, "
                             f"Kind={kind}")
        plural = _BINDABLE[kind]
        found = self._read(plural, "" if kind == "Node" else namespace, name)
        if found is None:
            raise NotFound.of(plural, name)
        uid = found["metadata"]["uid"]
        if reference.get("uid") and reference["uid"] != uid:
            raise Conflict.of(plural, name, why="the UID in the bound object reference "
                              f"({reference['uid']}) does not match the UID in record. "
                              "The object might have been deleted and then recreated")
        bound = {kind.lower(): {"name": name, "uid": uid}}
        if kind == "Pod":
            spec = found.get("spec") or {}
            if (spec.get("serviceAccountName") or "default") != account["metadata"]["name"]:
                raise BadRequest("cannot bind token for serviceaccount "
                                 f'"{account["metadata"]["name"]}" to pod running with different serviceaccount name.')
            node = self._read("nodes", "", spec["nodeName"]) if spec.get("nodeName") else None
            if node is not None:
                bound["node"] = {"name": spec["nodeName"], "uid": node["metadata"]["uid"]}
        return bound

    def configuration(self, host: str) -> dict[str, Any]:
        """`/.well-known/openid-configuration`; `host` is the address this server advertises, `address:port`."""
        own = self.issuer.startswith("https://kubernetes.default.svc")
        jwks = f"https://{host}/openid/v1/jwks" if own else f"{self.issuer.rstrip('/')}/openid/v1/jwks"
        return {"issuer": self.issuer, "jwks_uri": jwks, "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": sorted({a for _, a in self._keys().public.values()})}

    def key_set(self) -> dict[str, Any]:
        """`/openid/v1/jwks`."""
        from jwt.algorithms import ECAlgorithm, RSAAlgorithm
        shown = []
        for identifier, (public, algorithm) in self._keys().public.items():
            kind = ECAlgorithm if algorithm == "ES256" else RSAAlgorithm
            jwk: dict[str, Any] = kind.to_jwk(public, as_dict=True)  # type: ignore[attr-defined]
            jwk.pop("key_ops", None)
            shown.append({"use": "sig", "kid": identifier, "alg": algorithm, **jwk})
        return {"keys": shown}


class Issuer:
    """Answers the OpenID discovery paths, by which others verify this cluster's tokens."""

    def __init__(self, context: Context, tokens: Tokens | None) -> None:
        self._options = context.options
        self._tokens = tokens

    async def handle(self, request: Request) -> Response | None:
        from controlplane.apiserver.response import Response
        path = request.path.rstrip("/")
        if self._tokens is None or path not in ("/.well-known/openid-configuration", "/openid/v1/jwks"):
            return None
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed
        headers = [("Cache-Control", "public, max-age=3600")]
        if path == "/openid/v1/jwks":
            return Response(200, orjson.dumps(self._tokens.key_set()), "application/jwk-set+json", headers)
        host = f"{self._options.advertise_address or 'kubernetes.default.svc'}:{self._options.secure_port}"
        return Response(200, orjson.dumps(self._tokens.configuration(host)), "application/json", headers)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def reader(context: Context) -> Reader:
    """Looks objects up in the watch cache."""
    def read(plural: str, namespace: str, name: str) -> dict[str, Any] | None:
        item = context.cache.get(key_of(plural, namespace, name))
        return item.obj if item is not None else None
    return read


def from_options(context: Context) -> Tokens | None:
    """The server's tokens, None when no signing key is configured."""
    options = context.options
    if options.service_account_signing_key_file is None:
        return None
    return Tokens(options.service_account_signing_key_file, options.service_account_issuer, reader(context),
                  context.clock, options.service_account_key_file)

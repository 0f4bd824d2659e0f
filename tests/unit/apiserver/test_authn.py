"""Every way to say who one is, over real connections: bootstrap tokens, front proxies, browsers, an OpenID provider."""

import asyncio
import base64
import json
import ssl
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from controlplane.apiserver.authentication import bootstraptokens, oidc, webbearer
from controlplane.apiserver.config import Options
from controlplane.machinery.clock import SYSTEM, rfc3339
from controlplane.machinery.errors import Unauthorized
from controlplane.pki.authority import Authority
from tests.unit.apiserver.harness import DEADLINE, serving

ME = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
NOW = 1_700_000_000.0


async def whoami(api, **headers):
    status, answer = await api.call("POST", ME, {}, headers={k.replace("_", "-"): v for k, v in headers.items()})
    return answer["status"]["userInfo"] if status == 201 else status


def bootstrap(**data):
    text = {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:workers", **data}
    return {"metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"}, "type": bootstraptokens.TYPE,
            "data": {k: base64.b64encode(v.encode()).decode() for k, v in text.items()}}


@pytest.mark.parametrize(("data", "holds"), [
    ({}, True), ({"expiration": rfc3339(NOW + 1)}, True), ({"expiration": rfc3339(NOW)}, False),
    ({"expiration": "soon"}, False), ({"token-id": "other1"}, False), ({"usage-bootstrap-authentication": "no"}, False),
    ({"token-secret": "0123456789abcdeX"}, False), ({"auth-extra-groups": "system:masters"}, False)])
def test_when_a_bootstrap_token_holds(data, holds):
    found = bootstraptokens.holder(bootstrap(**data), "abcdef", "0123456789abcdef", NOW)
    groups = ("system:bootstrappers", "system:bootstrappers:workers")
    assert found == (("system:bootstrap:abcdef", groups) if holds else None)


def test_a_bootstrap_token_authenticates_while_its_secret_exists():
    async def play():
        async with serving(enable_bootstrap_token_auth=True) as api:
            credential = {"Authorization": "Bearer abcdef.0123456789abcdef"}
            assert await whoami(api, **credential) == 401
            await api.made("/api/v1/namespaces/kube-system/secrets", bootstrap())
            assert await whoami(api, **credential) == {"username": "system:bootstrap:abcdef", "groups": [
                "system:bootstrappers", "system:bootstrappers:workers", "system:authenticated"]}
            await api.call("DELETE", "/api/v1/namespaces/kube-system/secrets/bootstrap-token-abcdef")
            assert await whoami(api, **credential) == 401
    asyncio.run(play())


def test_a_browser_sends_its_token_as_a_subprotocol(tmp_path):
    (tmp_path / "tokens.csv").write_text("jane's token,jane,2\n")
    word = base64.urlsafe_b64encode(b"jane's token").decode().rstrip("=")
    offered = f"{webbearer.PREFIX}{word}, v4.channel.k8s.io"
    assert webbearer.without(offered) == "v4.channel.k8s.io" and webbearer.without("a,b") == "a,b"
    for wrong in (webbearer.PREFIX + word, f"{offered}, {webbearer.PREFIX}{word}", f"{webbearer.PREFIX}*, v4"):
        with pytest.raises(Unauthorized):
            webbearer.token({webbearer.HEADER: wrong, "Upgrade": "websocket"})

    async def play():
        async with serving(token_auth_file=tmp_path / "tokens.csv") as api:
            upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
            seen = await whoami(api, Sec_WebSocket_Protocol=offered, **upgrade)
            assert seen["username"] == "jane"
            other = f"{webbearer.PREFIX}eHh4, v4.channel.k8s.io"
            assert await whoami(api, Sec_WebSocket_Protocol=other, **upgrade) == 401
    asyncio.run(play())


def test_a_front_proxy_is_believed_and_good_for_nothing_else(tmp_path):
    (tmp_path / "proxies").mkdir()
    proxies = Authority.create(tmp_path / "proxies", name="front-proxy-ca")

    def session(pair):
        tls = ssl.create_default_context(cafile=str(tmp_path / "etc/pelamis/pki/ca.crt"))
        (tmp_path / "pair.pem").write_bytes(pair.certificate + pair.key)
        tls.load_cert_chain(tmp_path / "pair.pem")
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls, limit=1))

    async def play():
        async with serving(tls=tmp_path, requestheader_client_ca_file=tmp_path / "proxies/ca.crt",
                           requestheader_allowed_names=("proxy",), requestheader_uid_headers=("X-Remote-Uid",),
                           authorization_mode=("RBAC",)) as api:
            told = {"X_Remote_User": "jane", "X_Remote_Group": "dev", "X_Remote_Extra_Acme.com%2fTeam": "red",
                    "X_Remote_Uid": "7"}
            own = await whoami(api, **told)  # an ordinary client is who its certificate says
            assert own["username"] == "kubernetes-admin"
            admin = api.session
            async with session(proxies.issue("proxy", ["system:masters"])) as api.session:
                assert await whoami(api) == 403  # on one connection: by itself it is nobody
                seen = await whoami(api, **told)
                assert seen == {"username": "jane", "uid": "7", "groups": ["dev", "system:authenticated"],
                                "extra": {"acme.com/team": ["red"]}}
                assert (await whoami(api, X_Remote_User="ann"))["username"] == "ann"
                assert await whoami(api) == 403
            async with session(proxies.issue("other", ["system:masters"])) as api.session:
                assert await whoami(api, **told) == 403
            api.session = admin
    asyncio.run(play())


# --- OpenID Connect --------------------------------------------------------------------------------------------------

class Provider:
    """A small issuer: publishes the keys it holds and signs what it is told to."""

    def __init__(self, folder):
        from cryptography.hazmat.primitives.asymmetric import rsa
        self.make = lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.keys = {"one": self.make()}
        authority = Authority.create(folder)
        pair = authority.issue("issuer", usages=["server"], sans=["127.0.0.1"])
        (folder / "pair.pem").write_bytes(pair.certificate + pair.key)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(folder / "pair.pem")

    @asynccontextmanager
    async def running(self):
        async def about(_):
            return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})

        async def keys(_):
            from jwt.algorithms import RSAAlgorithm
            listed = [{"kid": kid, "use": "sig", "alg": "RS256", **json.loads(RSAAlgorithm.to_jwk(k.public_key()))}
                      for kid, k in self.keys.items()]
            return web.json_response({"keys": listed})
        app = web.Application()
        app.add_routes([web.get("/.well-known/openid-configuration", about), web.get("/keys", keys)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.tls)
        await site.start()
        self.url = f"https://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def token(self, kid="one", key=None, **claims):
        import jwt
        now = int(SYSTEM.now())
        body = {"iss": self.url, "aud": "lab", "sub": "jane", "exp": now + 60, "groups": ["dev"], **claims}
        return jwt.encode(body, key or self.keys[kid], "RS256", {"kid": kid})


def test_users_of_an_openid_provider(tmp_path):
    async def play():
        provider = Provider(tmp_path)
        async with provider.running(), serving(
                oidc_issuer_url=provider.url, oidc_client_id="lab", oidc_ca_file=tmp_path / "ca.crt",
                oidc_groups_claim="groups", oidc_groups_prefix="oidc:", oidc_username_prefix="oidc:") as api:
            async with asyncio.timeout(DEADLINE):
                await api.server.authenticator.oidc.ready.wait()

            async def seen(token):
                return await whoami(api, Authorization=f"Bearer {token}")
            assert await seen(provider.token(jti="t1")) == {
                "username": "oidc:jane", "groups": ["oidc:dev", "system:authenticated"],
                "extra": {"authentication.kubernetes.io/credential-id": ["JTI=t1"]}}
            assert await seen(provider.token(aud="other")) == 401
            assert await seen(provider.token(exp=int(SYSTEM.now()) - 1)) == 401
            assert await seen(provider.token(iss="https://elsewhere")) == 401
            assert await seen(provider.token(key=provider.make())) == 401
            assert await seen(provider.token()[:-4] + "AAAA") == 401
    asyncio.run(play())


def test_a_new_key_of_the_provider_is_fetched_when_a_token_names_it(tmp_path):
    from controlplane.machinery.clock import FakeClock

    async def play():
        provider, clock = Provider(tmp_path), FakeClock(SYSTEM.now())
        async with provider.running(), asyncio.TaskGroup() as group:
            options = Options(oidc_issuer_url=provider.url, oidc_client_id="lab", oidc_ca_file=tmp_path / "ca.crt")
            made = oidc.Oidc(options, clock)
            task = group.create_task(made.run())
            async with asyncio.timeout(DEADLINE):
                await made.ready.wait()
            provider.keys["two"] = provider.make()
            token = provider.token("two")
            assert made.user(token) is None
            made.ready.clear()
            await clock.advance(oidc.RETRY_SECONDS)
            async with asyncio.timeout(DEADLINE):
                await made.ready.wait()
            assert made.user(token)[0] == f"{provider.url}#jane"
            task.cancel()
    asyncio.run(play())


@pytest.mark.parametrize(("claims", "flags", "name"), [
    ({"sub": "1"}, {}, "https://i#1"), ({"sub": "1"}, {"oidc_username_prefix": "-"}, "1"),
    ({"email": "a@b"}, {"oidc_username_claim": "email"}, "a@b"), ({}, {}, None), ({"sub": 7}, {}, None),
    ({"email": "a@b", "email_verified": False}, {"oidc_username_claim": "email"}, None),
    ({"sub": "1", "hd": "x"}, {"oidc_required_claims": (("hd", "x"),)}, "https://i#1"),
    ({"sub": "1", "hd": "y"}, {"oidc_required_claims": (("hd", "x"),)}, None)])
def test_what_claims_say(claims, flags, name):
    found = oidc.identity(claims, Options(oidc_issuer_url="https://i", **flags))
    assert (found and found[0]) == name

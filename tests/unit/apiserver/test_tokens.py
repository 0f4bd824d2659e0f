"""Service-account tokens: issued, verified, bound to objects, refused once those are gone."""

import pytest

from controlplane.apiserver.authentication.authn import Authenticator, User
from controlplane.apiserver.authentication.tokens import Tokens, reader
from controlplane.apiserver.authorization.authz import Authorizer
from controlplane.apiserver.authorization.reviews import Reviews
from controlplane.machinery.clock import rfc3339
from controlplane.machinery.errors import BadRequest, Conflict, Invalid, Unauthorized
from controlplane.store.cache import key_of
from tests.unit.apiserver.edge import make_context, put, request, running, signing_key

ACCOUNT = {"apiVersion": "v1", "kind": "ServiceAccount",
           "metadata": {"name": "app", "namespace": "ns", "uid": "u-app"}}
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "ns", "uid": "u-p"},
       "spec": {"serviceAccountName": "app", "nodeName": "n1"}}
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "u-n1"}}


@pytest.fixture
def context(tmp_path):
    made = make_context(service_account_signing_key_file=signing_key(tmp_path))
    made.authorizer = Authorizer(made)
    return made


def asked(**spec):
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}


def test_a_bound_token_lives_as_long_as_its_pod(context):
    authenticator = Authenticator(context)
    reviews = Reviews(context, authenticator)

    def who(token):
        return authenticator.authenticate(request(context, "/api", Authorization=f"Bearer {token}"))

    async def play():
        for plural, obj in (("serviceaccounts", ACCOUNT), ("pods", POD), ("nodes", NODE)):
            await put(context, plural, obj)
        ask = request(context, "/api/v1/namespaces/ns/serviceaccounts/app/token", "POST", User("admin"))
        answer = reviews.token(ask, ACCOUNT, asked(boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": "p",
                                                                   "uid": "u-p"}))
        token = answer["status"]["token"]
        user = who(token)
        assert user.name == "system:serviceaccount:ns:app" and user.uid == "u-app"
        assert user.groups == ("system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated")
        assert user.extra["authentication.kubernetes.io/node-uid"] == ["u-n1"]
        with pytest.raises(Unauthorized):
            who(token[:-6] + "AAAAAA")
        await context.cache.write(key_of("pods", "ns", "p"), None, context.cache.revision - 1)  # the node came after
        with pytest.raises(Unauthorized):
            who(token)
        unbound = reviews.token(ask, ACCOUNT, asked(expirationSeconds=600))["status"]["token"]
        assert who(unbound).name == user.name
        await context.clock.advance(601)
        with pytest.raises(Unauthorized):
            who(unbound)

    running(context, play)


def test_what_may_be_asked_for(context):
    reviews = Reviews(context)

    async def play():
        await put(context, "serviceaccounts", ACCOUNT)
        await put(context, "pods", POD)
        ask = request(context, "/api/v1/namespaces/ns/serviceaccounts/app/token", "POST", User("admin"))
        with pytest.raises(Invalid, match="less than 10 minutes"):
            reviews.token(ask, ACCOUNT, asked(expirationSeconds=599))
        with pytest.raises(Conflict):
            reviews.token(ask, ACCOUNT, asked(boundObjectRef={"kind": "Pod", "name": "p", "uid": "other"}))
        with pytest.raises(BadRequest, match="cannot bind token to object of type /v1, Kind=Foo"):
            reviews.token(ask, ACCOUNT, asked(boundObjectRef={"kind": "Foo", "apiVersion": "v1", "name": "p"}))
        other = {"metadata": {"name": "other", "namespace": "ns", "uid": "u-o"}}
        with pytest.raises(BadRequest, match="different serviceaccount"):
            reviews.token(ask, other, asked(boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": "p"}))

    running(context, play)


def test_token_reviews_tell_the_audience(context):
    authenticator = Authenticator(context)
    reviews = Reviews(context, authenticator)

    async def play():
        await put(context, "serviceaccounts", ACCOUNT)
        ask = request(context, "/api/v1/namespaces/ns/serviceaccounts/app/token", "POST", User("admin"))
        token = reviews.token(ask, ACCOUNT, asked(audiences=["vault"]))["status"]["token"]
        review = request(context, "/apis/authentication.k8s.io/v1/tokenreviews", "POST", User("system:node:n1"))

        def status(**spec):
            return reviews.handle(review, {"spec": spec})["status"]

        good = status(token=token, audiences=["vault", "x"])
        assert good["authenticated"] and good["audiences"] == ["vault"]
        assert status(token=token) == {"user": {}, "error": "invalid bearer token"}
        assert status(token="junk")["error"] == "invalid bearer token"

    running(context, play)


def test_a_foreign_library_verifies_with_the_published_key_set(context):
    import jwt
    tokens = Authenticator(context).tokens
    text, _ = tokens.sign("ns", ACCOUNT, ["me"], 600, {})
    published = jwt.PyJWKSet.from_dict(tokens.key_set())
    key = published[jwt.get_unverified_header(text)["kid"]]
    claims = jwt.decode(text, key, ["ES256"], audience="me", options={"verify_exp": False, "verify_nbf": False,
                                                                       "verify_iat": False})
    assert claims["sub"] == "system:serviceaccount:ns:app"
    assert tokens.configuration("h:1")["jwks_uri"] == "https://h:1/openid/v1/jwks"


def test_an_older_key_keeps_its_tokens_good_while_a_new_one_signs(tmp_path):
    from controlplane.pki.authority import key_pem, new_key, public_pem
    old, new = new_key(), new_key()
    for name, key in (("old", old), ("new", new)):
        (tmp_path / f"{name}.key").write_bytes(key_pem(key))
    (tmp_path / "both.pub").write_bytes(public_pem(new) + public_pem(old))

    async def play():
        await put(context, "serviceaccounts", ACCOUNT)
        before = tokens_of("old").sign("ns", ACCOUNT, [context.options.service_account_issuer], 600, {})[0]
        assert tokens_of("new").verify(before, []) is None
        both = tokens_of("new", tmp_path / "both.pub")
        assert both.verify(before, [])["sub"] == "system:serviceaccount:ns:app"
        after = both.sign("ns", ACCOUNT, [context.options.service_account_issuer], 600, {})[0]
        assert both.verify(after, []) and tokens_of("old").verify(after, []) is None
        assert len({key["kid"] for key in both.key_set()["keys"]}) == 2

    def tokens_of(name, public=None):
        return Tokens(tmp_path / f"{name}.key", context.options.service_account_issuer, reader(context), context.clock,
                      public)

    context = make_context()
    running(context, play)


def test_a_pod_that_should_be_gone_lends_its_token_no_more(context):
    tokens = Authenticator(context).tokens

    async def play():
        await put(context, "serviceaccounts", ACCOUNT)
        now = context.clock.now()
        ends = {**POD, "metadata": {**POD["metadata"], "deletionTimestamp": rfc3339(now + 30)}}
        await put(context, "pods", ends)
        bound = {"pod": {"name": "p", "uid": "u-p"}}
        text, _ = tokens.sign("ns", ACCOUNT, [context.options.service_account_issuer], 600, bound)
        await context.clock.advance(80)
        assert tokens.verify(text, [])
        await context.clock.advance(20)
        assert tokens.verify(text, []) is None

    running(context, play)

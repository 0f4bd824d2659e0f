"""Other API servers behind this one: APIServices, their availability, the way to them, and their documents.

`remotes` knows which group-versions others serve, `proxy` speaks to them, `availability` looks whether they answer,
`documents` merges what they say about themselves into this server's discovery and OpenAPI, `local` keeps an APIService
for every group-version of this server's own. `Aggregator` in `aggregator` is all of it for the server.

Upstream: k8s.io/kube-aggregator.
"""

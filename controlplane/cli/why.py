"""`pelamis why [KIND/NAME]`: why something does not work, and what mends it.

Asks the API server, which knows the statuses, events and refusals; without an object it looks at all of them, or at
those of one namespace, and tells what was refused lately.
Exit code 0 when nothing is wrong, 3 when there are findings, so that scripts can tell.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from controlplane.cli import kubeconfig
from controlplane.cli.output import bad, good, say
from controlplane.machinery.errors import ApiError, Finding
from controlplane.machinery.resources import BUILTIN, Resource

FOUND = 3
EXAMPLES = ("why deployment/web", "why pvc/data -n shop", "why", "why -n shop")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("why", help="say why something does not work, and what mends it")
    parser.add_argument("object", nargs="?", default="", metavar="KIND/NAME", help="such as deployment/web or po/web-1;"
                        " without it: whatever does not work, and the requests that were refused lately")
    parser.add_argument("--namespace", "-n", default="", help="of the object (default: the kubeconfig's); "
                        "without an object: what does not work in it")
    parser.add_argument("--output", "-o", choices=["text", "json"], default="text")
    parser.add_argument("--kubeconfig", type=Path, help="whose eyes to look with (default: the admin's)")
    parser.set_defaults(run=run)


def resource_of(word: str, discovered: list[Resource]) -> Resource:
    """The resource a word such as `deploy`, `pods` or `services` means. Raises Finding."""
    word = word.lower()
    for resource in (*BUILTIN, *discovered):
        if word in (resource.plural, resource.singular, resource.name, *resource.short_names):
            return resource
    raise Finding(f'there is no kind "{word}"', fix="kubectl api-resources shows which there are")


def custom(document: dict[str, Any]) -> list[Resource]:
    """The resources of an aggregated discovery document."""
    return [Resource(group["metadata"]["name"], version["version"], r["resource"], r["responseKind"]["kind"],
                     r["scope"] == "Namespaced", tuple(r.get("shortNames") or ()))
            for group in document.get("items") or () for version in group.get("versions") or ()
            for r in version.get("resources") or ()]


async def ask(args: argparse.Namespace) -> dict[str, Any]:
    """The server's answer."""
    from controlplane.client import config
    from controlplane.client.rest import Client
    loaded = config.load(args.kubeconfig or kubeconfig.found())
    kind, slash, name = args.object.partition("/")
    if args.object and (not slash or not name):
        raise Finding(f'"{args.object}" names no object', fix=f"pelamis why {kind or 'KIND'}/NAME")
    async with Client(loaded, user_agent="pelamis") as client:
        if not args.object and args.namespace:
            kind, name = "namespace", args.namespace
        elif not args.object:
            return dict(json.loads(await client.raw("GET", "/why")))
        try:
            resource = resource_of(kind, [])
        except Finding:
            accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
            resource = resource_of(kind, custom(json.loads(await client.raw("GET", "/apis", None,
                                                                            {"Accept": accept}))))
        namespace = (args.namespace or loaded.namespace or "default") if resource.namespaced else ""
        return dict(json.loads(await client.raw("GET", "/why" + resource.path(namespace, name))))


def run(args: argparse.Namespace) -> int:
    try:
        answer = asyncio.run(ask(args))
    except ApiError as error:
        raise Finding(error.message) from None
    findings = answer.get("findings") or []
    if args.output == "json":
        print(json.dumps(answer, indent=2))
    elif not findings:
        of = args.object or (f"namespace {args.namespace}" if args.namespace else "")
        say(good(f"nothing is wrong with {of}" if of else "nothing is wrong, and nothing was refused lately"))
    for finding in findings if args.output == "text" else ():
        say(bad("● ") + finding["fact"])
        if finding["because"]:
            say(f"  because: {finding['because']}")
        if finding["fix"]:
            say(f"  fix: {finding['fix']}")
    return FOUND if findings else 0

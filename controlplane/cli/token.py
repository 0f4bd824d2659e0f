"""`pelamis token create|list|delete`: short-lived tokens with which other hosts join."""

from __future__ import annotations

import argparse
import asyncio
import re
from typing import TYPE_CHECKING

from controlplane.cli.output import columns, say
from controlplane.machinery.errors import Finding

if TYPE_CHECKING:
    from controlplane.client.rest import Client

TTL = "1h"  # long enough to go to the other host, short enough that a copy in a shell's history is worth nothing
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
EXAMPLES = ("token create --ttl 30m", "token list", "token delete abcdef")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("token", help="let other hosts join: create, list and delete tokens")
    verbs = parser.add_subparsers(dest="verb", metavar="create|list|delete", required=True)
    create = verbs.add_parser("create", help="make a token and print the command that joins")
    create.add_argument("--ttl", default=TTL, metavar="TIME", help=f"how long it holds: 30m, 2h, 1d (default {TTL})")
    create.add_argument("--description", default="", help="what it is for")
    create.add_argument("--token-only", action="store_true", help="print nothing but the token")
    verbs.add_parser("list", help="say which tokens hold, and until when")
    delete = verbs.add_parser("delete", help="end a token")
    delete.add_argument("token", help="the token, or its part before the dot")
    parser.set_defaults(run=run, root=True)


def seconds(text: str) -> float:
    """`30m` → 1800. Raises Finding."""
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if not match or not int(match[1]):
        raise Finding(f'"{text}" is no length of time', "", "give a number and s, m, h or d, such as 30m")
    return int(match[1]) * _UNITS[match[2]]


def run(args: argparse.Namespace) -> int:
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    from controlplane.cli import settings
    from controlplane.client.config import load
    from controlplane.client.rest import Client
    from controlplane.hosts import membership
    from controlplane.hosts.layout import Layout
    from controlplane.machinery.errors import NotFound
    from controlplane.machinery.paths import Paths
    paths = Paths.from_environment()
    kept = settings.load(paths.etc / "node.json")
    if kept is None or kept.server or not paths.admin_kubeconfig.exists():
        raise Finding("this host is no server", "tokens are made where the cluster is", "run it on the server")
    lifetime = seconds(args.ttl) if args.verb == "create" else 0.0
    async with Client(load(paths.admin_kubeconfig), user_agent="pelamis-token") as client:
        if args.verb == "create":
            await membership.welcome(client, paths, kept, Layout(paths).installed)  # its address may have changed
            token = await membership.create_token(client, lifetime, args.description)
            say(token if args.token_only else membership.command(paths, kept, token))
        elif args.verb == "list":
            await _list(client)
        else:
            identifier = args.token.partition(".")[0]
            try:
                await client.delete(membership.SECRETS, membership.TOKEN_PREFIX + identifier, membership.TOKEN_SPACE)
            except NotFound:
                raise Finding(f"there is no token {identifier}", fix="pelamis token list") from None
            say(f"token {identifier} no longer holds")
    return 0


async def _list(client: Client) -> None:
    from controlplane.hosts import membership
    rows = [["TOKEN", "UNTIL", "DESCRIPTION"]]
    for found in await membership.tokens(client):
        data = found["stringData"]
        rows.append([data.get("token-id", "?") + ".<secret>", data.get("expiration", "for ever"),
                     data.get("description", "")])
    say(columns(rows) if len(rows) > 1 else "no token holds; pelamis token create makes one")

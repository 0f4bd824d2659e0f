"""`pelamis certs [show|renew]`: how old this node's certificates are, and new ones before their time."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controlplane.cli.output import bad, columns, good, say, step
from controlplane.machinery.clock import SYSTEM, rfc3339
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths

if TYPE_CHECKING:
    from controlplane.cli.settings import Settings

DAY = 86400.0
EXAMPLES = ("certs", "certs renew")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("certs", help="show this node's certificates, or renew them now")
    parser.add_argument("verb", nargs="?", choices=["show", "renew"], default="show")
    parser.add_argument("--due", action="store_true", help="renew: only what is in the last third of its life")
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Certificate:
    """`renewed` is when it is renewed by itself, `end` when it would be of no use any more; wall seconds."""

    name: str
    subject: str
    renewed: float
    end: float


def found(paths: Paths) -> list[Certificate]:
    """The certificates of this node; authorities have no time of renewal (0)."""
    from cryptography import x509

    from controlplane.pki import leaves
    rows = []
    for file in sorted(paths.pki.rglob("*.crt")):
        pem = file.read_bytes()
        parsed = x509.load_pem_x509_certificate(pem)
        rows.append(Certificate(str(file.relative_to(paths.pki)), parsed.subject.rfc4514_string(),
                                0.0 if file.name == "ca.crt" else leaves.renewal_time(pem),
                                parsed.not_valid_after_utc.timestamp()))
    return rows


def run(args: argparse.Namespace) -> int:
    paths = Paths.from_environment()
    if not paths.pki.exists():
        raise Finding(f"there are no certificates in {paths.pki}", "nothing was installed here",
                      "pelamis install server")
    if args.verb == "renew":
        _renew(paths, args.due)
    now = SYSTEM.now()
    rows = [["CERTIFICATE", "SUBJECT", "ENDS", "DAYS LEFT", "RENEWED BY ITSELF"]]
    for certificate in found(paths):
        when = rfc3339(certificate.renewed)[:10] if certificate.renewed else "never"
        rows.append([certificate.name, certificate.subject, rfc3339(certificate.end)[:10],
                     str(int((certificate.end - now) / DAY)), when])
    say(columns(rows))
    expired = [c.name for c in found(paths) if c.end <= now]
    if expired:
        say(bad(f"no longer valid: {', '.join(expired)}") + "; pelamis certs renew")
    return 1 if expired else 0


def _renew(paths: Paths, due: bool) -> None:
    from controlplane.cli import node, preflight, settings
    preflight.check_root()
    kept = settings.load(paths.etc / "node.json")
    if kept is None:
        raise Finding("this host is no node", "", "pelamis install server")
    if kept.server and due:
        return  # the agent does that by itself
    if kept.server:
        from controlplane.hosts import joining
        if not joining.believed(paths):
            raise Finding("this node's own certificate has ended", "the cluster does not believe it any more",
                          "on the server: pelamis token create; then run here what it prints")
        with step(f"asking {kept.server} for new certificates"):
            asyncio.run(_ask(paths, kept.server, kept.node_name, kept.node_ip))
    else:
        with step("issuing new certificates"):
            for file in paths.pki.rglob("*.crt") if not due else ():
                if file.name != "ca.crt":
                    file.unlink()  # what is absent is issued anew; its key too
            if not node.issue(paths, kept):
                say("all are good for long")
                return
    _take(paths, kept)
    say(good("renewed"))


async def _ask(paths: Paths, server: str, name: str, address: str) -> None:
    from controlplane.client import certificates
    from controlplane.client.config import load
    from controlplane.client.rest import Client
    config = load(paths.kubeconfig("node"))
    async with Client(config, user_agent="pelamis-certs") as client:
        for wanted in certificates.of_node(name, address):
            certificates.store(paths, server, config.ca, wanted, await certificates.obtain(client, wanted))


def _take(paths: Paths, kept: Settings) -> None:
    """Have the processes show them: no connection ends, and nothing is started anew."""
    from controlplane.cli import control
    from controlplane.hosts import prepare
    from controlplane.hosts.layout import Layout
    from controlplane.hosts.services import Services
    installed, services = Layout(paths).installed, Services()
    if installed:
        layout = Layout(paths, installed)
        prepare.lend(layout, kept, services)
        prepare.reload(layout, kept, services)
    else:
        control.reload(paths)

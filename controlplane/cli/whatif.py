"""`pelamis whatif -f FILE [--without NODE]`: where pods would run, or why not, without writing anything.

Reads the cluster once, expands the file's workloads into pods and lets the real scheduler decide over that snapshot.
With --without it also tells what becomes of the pods of nodes that are lost. Exit code 0 when everything fits, 3 when
something does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.cli import kubeconfig
from controlplane.cli.output import bad, columns, good, say
from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError, Finding

if TYPE_CHECKING:
    from controlplane.scheduler.imagined import Outcome

UNFIT = 3
FILE_LIMIT = 16 << 20  # bytes of one file: far more than any set of manifests
Obj = dict[str, Any]
EXAMPLES = ("whatif -f app.yaml", "whatif --without node-2 -o json")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("whatif", help="say where pods would run, without writing anything")
    parser.add_argument("-f", "--filename", action="append", default=[], metavar="FILE",
                        help="manifests, YAML or JSON; - is the standard input; may be given several times")
    parser.add_argument("--without", action="append", default=[], metavar="NODE", help="imagine that this node is lost")
    parser.add_argument("--namespace", "-n", default="", help="of objects that name none (default: the kubeconfig's)")
    parser.add_argument("--output", "-o", choices=["text", "json"], default="text")
    parser.add_argument("--kubeconfig", type=Path, help="whose eyes to look with (default: the admin's)")
    parser.set_defaults(run=run)


def documents(files: list[str], namespace: str) -> list[Obj]:
    """All objects of the files, those of Lists one by one. Raises Finding."""
    import yaml
    found: list[Obj] = []
    for name in files:
        try:
            text = sys.stdin.read(FILE_LIMIT) if name == "-" else Path(name).read_text()
            for document in yaml.safe_load_all(text):
                found += (document or {}).get("items") or ([document] if document else [])
        except (OSError, yaml.YAMLError, AttributeError) as error:
            raise Finding(f"cannot read {name}", str(error).splitlines()[0]) from None
    for document in found:
        if not document.get("kind") or not (document.get("metadata") or {}).get("name"):
            raise Finding("an object in the files has no kind or no metadata.name", json.dumps(document)[:200])
        document["metadata"].setdefault("namespace", namespace)
    return found


async def fetch(args: argparse.Namespace) -> tuple[dict[str, list[Obj]], str]:
    """(the cluster's objects by resource, the kubeconfig's namespace)."""
    from controlplane.client import config
    from controlplane.client.rest import Client
    from controlplane.machinery.resources import named
    from controlplane.scheduler.imagined import RESOURCES
    loaded = config.load(args.kubeconfig or kubeconfig.found())
    async with Client(loaded, user_agent="pelamis") as client:
        lists = await asyncio.gather(*(client.list(named(name), limit=500) for name in RESOURCES))
    return dict(zip(RESOURCES, (items for items, _ in lists))), loaded.namespace or "default"


def told(outcome: Outcome) -> Obj:
    """One outcome for programs."""
    answer: Obj = {"namespace": objects.namespace(outcome.pod), "name": objects.name(outcome.pod),
                   "fits": bool(outcome.node), "node": outcome.node}
    if outcome.leaving:
        answer["preempts"] = outcome.leaving
    if outcome.message:
        answer["message"] = outcome.message
    if outcome.nearest:
        answer["nearestMiss"] = outcome.nearest
    return answer


def run(args: argparse.Namespace) -> int:
    from controlplane.scheduler import imagined, nearest
    if not args.filename and not args.without:
        raise Finding("there is nothing to imagine", fix="give manifests with -f, or a node to lose with --without")
    try:
        cluster, namespace = asyncio.run(fetch(args))
    except ApiError as error:
        raise Finding(error.message) from None
    known = {objects.name(node) for node in cluster["nodes"]}
    for name in args.without:
        if name not in known:
            raise Finding(f"there is no node {name}", f"there are {', '.join(sorted(known)) or 'none'}")
    found = imagined.outcomes(cluster, documents(args.filename, args.namespace or namespace),
                              frozenset(args.without))
    unfit = [outcome for outcome in found if not outcome.node]
    if args.output == "json":
        print(json.dumps({"fits": not unfit, "pods": [told(outcome) for outcome in found]}, indent=2))
        return UNFIT if unfit else 0
    rows = [["NAMESPACE", "POD", "NODE", "PREEMPTS"]]
    rows += [[objects.namespace(o.pod), objects.name(o.pod), o.node or "-", ", ".join(o.leaving) or "-"] for o in found]
    say(columns(rows))
    for message, advice in dict.fromkeys((o.message, nearest.sentence(o.nearest)) for o in unfit):
        say(bad("● ") + message)
        if advice:
            say(f"  {advice}")
    say(good(f"all {len(found)} pods fit") if not unfit else f"{len(unfit)} of {len(found)} pods do not fit")
    return UNFIT if unfit else 0

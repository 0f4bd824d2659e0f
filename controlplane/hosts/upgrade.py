"""Another version of the program on this host: installed beside the old one, used, and given up when it fails.

Owns the order: is it allowed (a server before its agents, at most one minor version apart), a backup of the store, the
new folder, units, the restart of our own processes, the health check, and the way back with the very unit files that
were there. Promises that no container is restarted: containerd is started anew only when its unit changed, and
containers outlive that too. Called by the command `upgrade`.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from controlplane.cli.settings import Settings
from controlplane.doctor.checks import compatible
from controlplane.hosts import install, joining, membership, options, product, running
from controlplane.hosts.layout import Layout, unit
from controlplane.hosts.services import Services
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.errors import ApiError, Finding
from controlplane.machinery.resources import named
from netsetup.ledger import Ledger

Step = Callable[[str], AbstractContextManager[None]]


def upgrade(new: Layout, kept: Settings, services: Services, step: Step, source: Path = product.SOURCE) -> None:
    """Take `new.version`, whose program is in `source`, into use. Raises Finding; then the old version runs again."""
    old = Layout(new.paths, new.installed)
    if not kept.server:
        with step("backing up the store"):
            _backup(new)
    with step(f"installing version {new.version} beside {old.version}"):
        product.install(new, Ledger(new.paths.ledger), source)
    try:
        switch(old, new, kept, services, step)
    except Finding:
        shutil.rmtree(new.folder)  # nobody is to go back to it
        raise
    _forget(new, old)


def previous(layout: Layout) -> Layout:
    """The version before the one in use. Raises Finding when there is none."""
    others = [p for p in _versions(layout) if p.name != layout.version]
    if not others:
        raise Finding("there is no version to go back to", f"{layout.library} holds only {layout.version}",
                      "upgrade from a checkout of the version you want")
    return Layout(layout.paths, others[0].name)


def switch(old: Layout, new: Layout, kept: Settings, services: Services, step: Step) -> None:
    """Run `new`, or `old` again when it does not become healthy."""
    before = {path: path.read_text() for path in old.units.glob("pelamis*") if path.is_file()}
    try:
        with step(f"starting {new.version}; containers run on"):
            _use(new, kept, services, before)
        with step("looking whether it is healthy"):
            running.wait(new, services)
            asyncio.run(joining.ready(new.paths, kept.node_name, SYSTEM.now()))
    except Finding as finding:
        with step(f"going back to {old.version}"):
            for path, text in before.items():  # which name the new one already where an upgrade to it was killed
                path.write_text(text.replace(str(new.folder), str(old.folder)))
            services.reload()
            services.restart(*_processes(old, kept))
            running.wait(old, services)
        why = finding.fact + (f": {finding.because}" if finding.because else "")
        raise Finding(f"version {new.version} is not healthy, {old.version} runs again", why, finding.fix) from finding
    product.use(new, Ledger(new.paths.ledger))  # last: an upgrade that was killed is then gone through again


def allowed(new: Layout, server_version: str) -> None:
    """Raises Finding when this agent would be newer than its server, or too old for it. Versions may carry a digest."""
    wanted, serving = (v.partition("+")[0] for v in (new.version, server_version))
    if serving and not compatible(wanted, serving):
        raise Finding(f"the server runs {serving}, and this would be {wanted}",
                      "an agent may be one minor version older than its server, and never newer",
                      "upgrade the server first")


async def server_version(layout: Layout, kept: Settings) -> str:
    """What the cluster says it runs; "" when it does not tell."""
    import json

    from controlplane.client.config import load
    from controlplane.client.rest import Client
    try:
        async with Client(load(layout.paths.kubeconfig("node")), user_agent="pelamis-upgrade") as client:
            info = await client.get(named("configmaps"), membership.INFO, "kube-public")
        return str(json.loads(info["data"]["pelamis"])["version"])
    except (KeyError, ValueError):
        return ""
    except ApiError as error:
        raise Finding(f"{kept.server} does not answer", str(error),
                      "an agent is upgraded while its server runs") from None


def _use(new: Layout, kept: Settings, services: Services, before: dict[Path, str]) -> None:
    install.write_units(new, kept, Ledger(new.paths.ledger))
    options.write(new, running.components(new, kept))
    services.reload()
    names = _processes(new, kept)
    runtime = new.units / unit("containerd")
    if not kept.runtime and runtime.read_text() != before.get(runtime):
        names = [unit("containerd"), *names]
    services.restart(*names)


def _processes(layout: Layout, kept: Settings) -> list[str]:
    return [unit(c.name) for c in running.components(layout, kept) if c.name != "containerd"]


def _backup(layout: Layout) -> None:
    from controlplane.store import backup
    folder = layout.paths.lib / "snapshots"
    Ledger(layout.paths.ledger).make_directory(folder, 0o700)
    backup.save(layout.paths.store, folder, SYSTEM.now())


def _versions(layout: Layout) -> list[Path]:
    """The folders of whole versions, newest first."""
    found = [p for p in layout.library.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith(".")]
    return sorted(found, key=lambda p: p.stat().st_mtime, reverse=True)


def _forget(new: Layout, old: Layout) -> None:
    """Remove versions beyond those in use and before."""
    keep = {new.version, old.version}
    for folder in _versions(new):
        if folder.name not in keep:
            shutil.rmtree(folder)

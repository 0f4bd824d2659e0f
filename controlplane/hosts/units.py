"""The systemd units of a node, as text: what to run comes from the description of its processes, how from here.

Owns ordering, restarts, watchdog, resource control and hardening. Promises that what needs no root runs as a user of
its own who can read nothing of ours but its credentials, which `prepare` hands over; that stopping a unit never stops a
container; that the agent and containerd share the host's mounts, since pods must see the volumes they make; and that
containerd is not shut in at all, for every container would be with it (filters of system calls, the bounding set and
no-new-privileges are inherited: no program of 32 bits would run in a pod, and no time server). Pure.
Called by `install`, `prepare` and the tests that put every text through systemd-analyze.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from controlplane.cli.components import Component
from controlplane.cli.settings import Settings
from controlplane.hosts.layout import TARGET, USERS, Layout, unit
from netsetup.cni.install import RESULTS

WATCHDOG_SECONDS = 60  # a process whose loop hangs this long is of no use: far beyond any honest pause
START_SECONDS = 600  # an emulated machine's; who waits for a start gives up earlier where nothing gets on
RESTART_SECONDS = 1
PREPARE = unit("prepare")
SNAPSHOT = unit("snapshot")
TIMERS = ("pelamis-prepare.timer", "pelamis-snapshot.timer")
_TITLES = {"containerd": "container runtime", "apiserver": "API server", "controllers": "controllers and scheduler",
           "agent": "node agent"}
# For what runs without root: everything systemd can take away that Python does not need.
_HARDENED = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
PrivateUsers=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources @obsolete
SystemCallErrorNumber=EPERM
UMask=0077
"""
# The backup's own exceptions: the store is another user's, and it is root that keeps the snapshots.
_SNAPSHOT = _HARDENED.replace("CapabilityBoundingSet=\n", "CapabilityBoundingSet=CAP_DAC_OVERRIDE\n").replace(
    "PrivateUsers=yes\n", "") + "PrivateNetwork=yes\n"
# For root's processes: what neither the pod network nor volumes need. Modules are iptables' to load.
_ROOT = """\
NoNewPrivileges=yes
CapabilityBoundingSet=~CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_AUDIT_WRITE CAP_BLOCK_SUSPEND CAP_BPF CAP_IPC_LOCK CAP_LEASE
CapabilityBoundingSet=~CAP_LINUX_IMMUTABLE CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_NET_BROADCAST CAP_PERFMON CAP_SYS_BOOT
CapabilityBoundingSet=~CAP_SYSLOG CAP_SYS_PACCT CAP_SYS_RAWIO CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_WAKE_ALARM
LockPersonality=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_PACKET AF_UNIX
RestrictRealtime=yes
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @debug @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
"""
# It makes mounts for pods, so nothing here may give it mounts of its own. It enters networks, and no other namespaces.
_AGENT = _ROOT + "RestrictNamespaces=net\n"


def render(layout: Layout, settings: Settings, components: Sequence[Component]) -> dict[str, str]:
    """Unit file name → text. `components` were made with `${NODE_IP}` for the address, which `prepare` finds out."""
    names = [c.name for c in components]
    made = {unit(c.name): _service(layout, settings, c) for c in components}
    made[PREPARE] = _oneshot(layout, "look at this host before the services start", "prepare",
                             conduct=_prepare(layout))
    made["pelamis-prepare.timer"] = _timer("renew certificates in time", "OnCalendar=daily")
    if "apiserver" in names:
        made[SNAPSHOT] = _oneshot(layout, "back up the store", "snapshot save --scheduled",
                                  f"After={unit('apiserver')}",
                                  conduct=f"ReadWritePaths={layout.paths.lib}\n{_SNAPSHOT}")
        made["pelamis-snapshot.timer"] = _timer("back up the store", "OnCalendar=*-*-* 00/6:00:00")
    made[TARGET] = _target([unit(name) for name in names])
    return made


def wants(files: Sequence[str]) -> list[tuple[str, str]]:
    """The links that enable the units: (folder below the units' folder, unit)."""
    return [("multi-user.target.wants", TARGET),
            *(("timers.target.wants", name) for name in files if name.endswith(".timer"))]


def tmpfiles() -> str:
    return "# Pelamis: sockets and state that need not survive a reboot\nd /run/pelamis 0755 root root -\n"


def credentials(layout: Layout, c: Component) -> tuple[list[str], dict[Path, Path]]:
    """The arguments of a process without root, and the files it is given: copy → original. Whatever argument names a
    file below /etc/pelamis becomes a credential."""
    etc, found, words = str(layout.paths.etc) + "/", {}, []
    for word in c.argv:
        flag, equals, value = word.partition("=")
        if equals and value.startswith(etc):
            name = value.removeprefix(etc).removeprefix("pki/").replace("/", "-")
            copy = layout.credentials(c.name) / name
            found[copy] = Path(value)
            word = f"{flag}={copy}"
        words.append(word)
    return words, found


def _service(layout: Layout, settings: Settings, c: Component) -> str:
    user = USERS.get(c.name)
    words = credentials(layout, c)[0] if user else list(c.argv)
    lines = _head(c.name, c.after, settings, layout.folder)
    lines += ["[Service]", f"Type={'notify' if c.notify else 'exec'}"]
    if user:
        lines += [f"User={user}", f"Group={user}"]
    lines += [f'Environment="{key}={value}"' for key, value in sorted(c.env.items())]
    if c.name != "containerd":
        lines += [f"EnvironmentFile={layout.environment}",
                  f"# Your own flags, each explained there:\nEnvironmentFile=-{layout.paths.etc}/{c.name}.conf",
                  f"WatchdogSec={WATCHDOG_SECONDS}"]
        words = [*words, "$FLAGS"]
    if c.reloads:
        lines.append("# It takes renewed certificates.\nExecReload=/bin/kill -HUP $MAINPID")
    lines += ["ExecStart=" + " \\\n    ".join(words), "Restart=always", f"RestartSec={RESTART_SECONDS}",
              f"TimeoutStartSec={START_SECONDS}", f"TimeoutStopSec={c.stop_seconds + 15:.0f}",
              "SyslogIdentifier=" + unit(c.name).removesuffix(".service")]
    return "\n".join(lines) + "\n" + _conduct(layout, c.name) + f"\n[Install]\nWantedBy={TARGET}\n"


def _head(name: str, after: Sequence[str], settings: Settings, folder: Path) -> list[str]:
    order = [unit(n) for n in after] + ["network-online.target", PREPARE]
    if name == "agent" and settings.runtime:
        order.append("containerd.service")
        order.append("crio.service")
    return ["# Written by Pelamis. Change it with `systemctl edit`, not here: the next upgrade writes it anew.",
            "[Unit]", f"Description=Pelamis {_TITLES[name]}", f"Documentation=file:{folder}/docs/hosts.md",
            f"After={' '.join(order)}", f"Wants=network-online.target {PREPARE}", f"PartOf={TARGET}",
            "# It is tried for ever: what it waits for may come back.", "StartLimitIntervalSec=0", ""]


def _conduct(layout: Layout, name: str) -> str:
    """Resource control and hardening."""
    if name == "containerd":
        return ("# Containers are not part of this service: they run on when it stops.\n"
                "KillMode=process\nDelegate=yes\nOOMScoreAdjust=-999\nOOMPolicy=continue\nTasksMax=infinity\n"
                "LimitNOFILE=1048576\nLimitCORE=infinity\n")
    if name == "agent":
        return ("KillMode=process\nOOMScoreAdjust=-999\nOOMPolicy=continue\nCPUWeight=200\nTasksMax=infinity\n"
                "LimitNOFILE=65536\n" + _AGENT)
    writable = f"ReadWritePaths={layout.paths.store.parent}\n" if name == "apiserver" else ""
    return f"OOMScoreAdjust=-998\nCPUWeight=200\nTasksMax=512\nLimitNOFILE=65536\n{writable}" + _HARDENED


def _prepare(layout: Layout) -> str:
    """What looks at the host writes only what is ours, and into runtimes' memory of networks. It tries a runtime with a
    container, and may make namespaces."""
    paths, root = layout.paths, layout.paths.root
    return _ROOT + (f"ReadWritePaths={paths.etc} {paths.lib} {root / 'run'} {root / 'var/log'} -{RESULTS.parent}\n"
                    "ProtectSystem=strict\nProtectHome=yes\nProtectKernelLogs=yes\nProtectKernelModules=yes\n"
                    "ProtectKernelTunables=yes\nPrivateTmp=yes\nRestrictSUIDSGID=yes\n")


def _oneshot(layout: Layout, title: str, command: str, *more: str, conduct: str) -> str:
    after = "\n".join(more or ("After=local-fs.target network-online.target\nWants=network-online.target",))
    return (f"# Written by Pelamis.\n[Unit]\nDescription=Pelamis: {title}\n{after}\n\n[Service]\nType=oneshot\n"
            f'Environment="PYTHONPATH={layout.folder}"\nEnvironment="PELAMIS_ROOT={layout.paths.root}"\n'
            f"ExecStart={layout.python} -m controlplane.cli {command}\n"
            f"TimeoutStartSec={START_SECONDS}\n{conduct}")


def _timer(title: str, when: str) -> str:
    return (f"# Written by Pelamis.\n[Unit]\nDescription=Pelamis: {title}\n\n[Timer]\n{when}\n"
            "# Not every host of a cluster at once, and after a time without power as soon as may be.\n"
            "RandomizedDelaySec=1h\nPersistent=yes\n\n[Install]\nWantedBy=timers.target\n")


def _target(services: Sequence[str]) -> str:
    return ("# Written by Pelamis. All of this node; stopping it stops no container.\n"
            f"[Unit]\nDescription=Pelamis node\nWants={' '.join(services)}\n\n[Install]\nWantedBy=multi-user.target\n")

"""The pause image: one static program of 262 bytes that holds a pod's namespaces and reaps its orphans.

Owns the machine code (compiled from pause.c, so that no compiler is needed to install), the ELF file around it, and
which system calls it may not make. Every sandbox runs it; the runtime's configuration names it by `NAME`. Called by
`demo.install`, the kubelet and the tests.
"""

from __future__ import annotations

import struct

from agent.image import oci
from agent.image.layer import Layer
from controlplane.machinery.errors import Finding

NAME = "pelamis.local/pause:1"
# What the runtimes' own profile forbids, by name. That one allows some 400 calls and forbids the rest: to compile it
# takes the runtime a third of all a pause container costs. This list, for a program of three calls, costs little.
FORBIDDEN = (
    "_sysctl", "acct", "add_key", "bpf", "clock_adjtime", "clock_settime", "create_module", "delete_module",
    "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "get_kernel_syms", "get_mempolicy", "init_module",
    "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load",
    "kexec_load", "keyctl", "lookup_dcookie", "mbind", "mount", "mount_setattr", "move_mount", "move_pages",
    "nfsservctl", "open_by_handle_at", "open_tree", "perf_event_open", "pivot_root", "process_vm_readv",
    "process_vm_writev", "ptrace", "query_module", "quotactl", "reboot", "request_key", "set_mempolicy", "setns",
    "settimeofday", "stime", "swapoff", "swapon", "sysfs", "umount", "umount2", "unshare", "uselib", "userfaultfd",
    "ustat", "vm86", "vm86old")
PROFILE = {"defaultAction": "SCMP_ACT_ALLOW",
           "syscalls": [{"names": list(FORBIDDEN), "action": "SCMP_ACT_ERRNO"}]}

# x86-64 code of pause.c, position independent: the two commands that make it stand in that file.
_CODE = bytes.fromhex(
    "415531d241ba08000000b80e00000041544889d7555348c74424f8ffffffff4c8d4424f84c89c60f0541b98000000031f6bb3d000000"
    "4883cdff41bde700000041bc0100000041ba080000004c89c84c89c74889f20f054883f80f74064883f80275104531d24c89e84889f7"
    "4889f20f05ebd34883f81175cd4531d24889d84889ef4c89e20f054885c07fedebb8")

_BASE = 0x400000  # where it is loaded; any free page does
_EHDR, _PHDR = 64, 56  # sizes of the two ELF headers
_EXEC, _X86_64, _LOAD, _READ_EXECUTE = 2, 62, 1, 5


def program() -> bytes:
    """The ELF executable: file header, one loadable segment, code."""
    start = _EHDR + _PHDR
    size = start + len(_CODE)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, _EXEC, _X86_64, 1, _BASE + start, _EHDR, 0, 0, _EHDR, _PHDR, 1,
                         0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", _LOAD, _READ_EXECUTE, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + _CODE


def image() -> oci.Image:
    """Raises Finding on machines the code is not for."""
    if oci.architecture() != "amd64":
        raise Finding("no pause program for this machine", f"it is built for amd64, this is {oci.architecture()}",
                      f"import a pause image of your own under the name {NAME}: pelamis image import FILE")
    layer = Layer()
    layer.file("pause", program(), 0o755)
    return oci.build([NAME], [layer.packed()],
                     {"Entrypoint": ["/pause"], "User": "65535:65535", "WorkingDir": "/"})

"""The signals that may end a container, by the names the API knows them by, and the CRI's numbers of them.

Facts only. The CRI numbers signals by the alphabet of their names, not as the kernel does. Used by validation and by
the kubelet.

Upstream: supportedStopSignals in k8s.io/kubernetes/pkg/apis/core/validation, enum Signal of the CRI.
"""

from __future__ import annotations

_WORDS = ("ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
          "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
          "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", *(f"RTMIN+{n}" for n in range(1, 16)),
          *(f"RTMAX-{n}" for n in range(14, 0, -1)), "RTMAX")
NUMBERS = {f"SIG{word}": number for number, word in enumerate(_WORDS, start=1)}
NAMES = {number: name for name, number in NUMBERS.items()}
WINDOWS = ("SIGKILL", "SIGTERM")

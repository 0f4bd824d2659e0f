"""Small TLS read buffers for every process that holds many connections.

Owns one number: asyncio gives each TLS connection a read buffer of 256 KiB filled with zeros, and a control plane holds
a connection per watch. Promises nothing but memory: reads larger than the buffer come in several pieces. Called first
thing by `main` of each process.
"""

from __future__ import annotations

TLS_BUFFER = 32 * 1024  # bytes; two TLS records


def shrink() -> None:
    """Let connections made from now on have small buffers."""
    from asyncio import sslproto
    sslproto.SSLProtocol.max_size = TLS_BUFFER

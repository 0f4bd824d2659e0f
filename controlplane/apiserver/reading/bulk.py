"""Long lists, piece by piece, so that whoever asks for ten thousand objects keeps nobody waiting.

Owns how a list of many items is matched and written: in batches, the event loop serving others in between, gzipped on
the way when that was asked for. Promises that the items are those of one revision (they were taken before the first
batch), that no more than a batch is in memory twice, and that a reader who takes nothing is cut. Called by `lists`.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence

from controlplane.apiserver.reading.representation import GZIP_LEVEL
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import JSON, STALLED_SECONDS, Headers, Stream, Writer
from controlplane.store.item import Item

ABOVE = 2000  # items; a shorter list is joined at once in a few milliseconds
BATCH = 100  # items of one piece: some 300 kB, a millisecond or two of the event loop, five as rows of a table
Join = Callable[[Sequence[Item]], bytes]


async def matching(items: Sequence[Item], match: Callable[[Item], bool], limit: int) -> list[Item]:
    """The items that match, at most `limit` + 1 of them when it is given."""
    found: list[Item] = []
    for start in range(0, len(items), BATCH):
        found += [item for item in items[start:start + BATCH] if match(item)]
        if limit and len(found) > limit:
            return found[:limit + 1]
        if start + BATCH < len(items):
            await asyncio.sleep(0)
    return found


def joined(bare: bool) -> Join:
    """Items as they are stored, with or without their type."""
    return lambda batch: b",".join([item.bare if bare else item.data for item in batch])


def answer(request: Request, head: bytes, items: Sequence[Item], join: Join, headers: Headers) -> Stream:
    """`head`, the items as `join` gives each batch of them, and the end of the list."""
    gzipped = "gzip" in request.headers.get("Accept-Encoding", "")

    async def run(writer: Writer) -> None:
        loop = asyncio.get_running_loop()
        packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS) if gzipped else None
        for start in range(0, len(items), BATCH):
            batch = items[start:start + BATCH]
            piece = (head if not start else b",") + join(batch)
            if packer is not None:
                piece = await loop.run_in_executor(None, packer.compress, piece)
            async with asyncio.timeout(STALLED_SECONDS):
                await writer.write(piece)
            await asyncio.sleep(0)
        await writer.write(b"]}\n" if packer is None else packer.compress(b"]}\n") + packer.flush())

    extra = [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")] if gzipped else []
    return Stream(run, 200, JSON, [*headers, *extra])

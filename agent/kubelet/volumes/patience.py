"""File work that may hang for ever, such as on a mount whose server is gone, without holding up anybody else.

Owns threads of its own for it, few and bounded: one that hangs is left behind and takes no thread from other work, and
its caller is told after a while. Called by `manager`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
LIMIT_SECONDS = 20.0  # no healthy file system takes longer to answer
MAX_HUNG = 32  # threads left behind; beyond that nothing more is tried until one comes back

_hung: set[threading.Thread] = set()


async def within(what: str, function: Callable[..., Result], *arguments: object,
                 seconds: float = LIMIT_SECONDS) -> Result:
    """What `function` returns or raises; OSError naming `what` when it takes longer than `seconds`."""
    if len(_hung) >= MAX_HUNG:
        raise OSError(f"{what}: too many file systems of this node do not answer")
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, problem = None, None
        try:
            result = function(*arguments)
        except Exception as error:  # whatever it is, it is the caller's
            problem = error
        _hung.discard(threading.current_thread())
        try:
            loop.call_soon_threadsafe(settle, result, problem)
        except RuntimeError:
            pass  # the loop has ended meanwhile

    thread = threading.Thread(target=work, name=f"files of {what}", daemon=True)
    _hung.add(thread)
    thread.start()
    try:
        async with asyncio.timeout(seconds):
            return await done
    except TimeoutError:
        raise OSError(f"{what} did not answer within {seconds:g} s: is the file system it lies on gone?") from None

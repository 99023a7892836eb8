"""Locks and unlocks one path with the Python package `treelock`; says nanoseconds per pair for each line it is sent."""
import asyncio
import sys
import time
from pathlib import PurePosixPath

from treelock import TreeLock

PAIRS = 50


async def main():
    lock, path = TreeLock(), PurePosixPath(sys.argv[1])
    for _ in sys.stdin:
        start = time.perf_counter_ns()
        for _ in range(PAIRS):
            async with lock(read=[], write=[path]):
                pass
        print((time.perf_counter_ns() - start) / PAIRS, flush=True)


asyncio.run(main())

"""CUDA graphs of the decode step: hundreds of small kernels, launched as one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

Step = Callable[[int, int, float], None]
"""Decode the first ``rows`` rows once, over ``columns`` columns of the cache, at a temperature; in place."""


class GraphedStep:
    """Replays a decode step that was captured once for each bucket of rows and columns.

    What the step reads and writes must keep its address for as long as this object lives, the step must not wait for
    the device, and the surplus rows of a bucket must be ended ones, whose place and position a step leaves as they are.

    Args:
        step: the step.
        slots: the most rows.
        columns: the most columns.
        bounded: whether the step looks at as many columns as it is told; else one bucket of them is enough.
        device: that it runs on.
    """

    def __init__(self, step: Step, slots: int, columns: int, bounded: bool, device: torch.device) -> None:
        self.step = step
        self.row_buckets = _row_buckets(slots)
        self.column_buckets = _column_buckets(columns) if bounded else [columns]
        self.capture = _CudaCapture(device)
        self.replays: dict[tuple[int, int, float], Callable[[], None]] = {}

    def warm_up(self, rows: int, columns: int, temperature: float) -> None:
        """Capture all that a call can need, the largest first, so that the others fit into its memory.

        A captured function has run once for real, so no row may be live.
        """
        for row_bucket in reversed(self.row_buckets[: bisect_left(self.row_buckets, rows) + 1]):
            for column_bucket in reversed(self.column_buckets[: bisect_left(self.column_buckets, columns) + 1]):
                key = (row_bucket, column_bucket, temperature)
                if key not in self.replays:
                    self.replays[key] = self.capture(partial(self.step, *key))

    def __call__(self, rows: int, columns: int, temperature: float) -> None:
        row_bucket = self.row_buckets[bisect_left(self.row_buckets, rows)]
        column_bucket = self.column_buckets[bisect_left(self.column_buckets, columns)]
        self.replays[row_bucket, column_bucket, temperature]()


def _row_buckets(slots: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, …: at most half as many rows again as are live."""
    sizes = {size for power in range(slots.bit_length()) for size in (2**power, 3 * 2**power // 2)}
    return sorted({size for size in sizes if size < slots} | {slots})


def _column_buckets(columns: int) -> list[int]:
    """256, 512, 1024, …"""
    return [size for power in range(8, columns.bit_length()) if (size := 2**power) < columns] + [columns]


class _CudaCapture:
    """Captures functions into graphs that share one pool of memory, and nothing with any other's graphs.

    A library keeps a workspace for each stream that it runs on. The one of the captures lies in their pool, so it must
    not be the stream that torch shares among all captures by default: graphs of another pool would go on to use that
    memory after this pool is gone (pytorch issue 193402).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = torch.cuda.graph_pool_handle()
        self.first_runs, self.captures = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        current = torch.cuda.current_stream(self.device)
        self.first_runs.wait_stream(current)
        with torch.cuda.stream(self.first_runs):
            function()  # libraries set themselves up at their first call, which a capture does not allow
        current.wait_stream(self.first_runs)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: a data loader, a logger.
        with torch.cuda.graph(graph, self.pool, self.captures, capture_error_mode="thread_local"):
            function()
        return graph.replay

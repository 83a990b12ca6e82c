"""CUDA graphs of the decode step: hundreds of small kernels, launched as one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[int, int, float], None]
"""Decode the first ``rows`` rows once, over ``columns`` columns of the cache, at a temperature; in place."""


class GraphedStep:
    """Replays a decode step that was captured once for each bucket of rows and columns.

    What the step reads and writes must keep its address for as long as this object lives, the step must not wait for
    the device, and the surplus rows of a bucket must be finished ones, which a step leaves as they are.

    Args:
        step: the step.
        slots: the most rows.
        columns: the most columns.
        bounded: whether the step looks at as many columns as it is told; else one bucket of them is enough.
        capture: makes a replay of a function; another one where there is no GPU.
    """

    def __init__(
        self,
        step: Step,
        slots: int,
        columns: int,
        bounded: bool,
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self.step = step
        self.row_buckets = _row_buckets(slots)
        self.column_buckets = _column_buckets(columns) if bounded else [columns]
        self.capture = capture or _CudaCapture()
        self.replays: dict[tuple[int, int, float], Callable[[], None]] = {}

    def warm_up(self, rows: int, columns: int, temperature: float) -> None:
        """Capture all that a call can need, the largest first, so that the others fit into its memory.

        A captured function has run once for real, so no row may be live.
        """
        for row_bucket in reversed(self.row_buckets[: bisect_left(self.row_buckets, rows) + 1]):
            for column_bucket in reversed(self.column_buckets[: bisect_left(self.column_buckets, columns) + 1]):
                key = (row_bucket, column_bucket, temperature)
                if key not in self.replays:
                    self.replays[key] = self.capture(lambda key=key: self.step(*key))  # type: ignore[misc]

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
    """Captures functions into graphs that share one pool of memory."""

    def __init__(self) -> None:
        self.pool: Any = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()  # one for all: cuBLAS keeps a workspace for each that it runs on

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            function()  # libraries set themselves up at their first call, which a capture does not allow
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: a data loader, a logger.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            function()
        return graph.replay

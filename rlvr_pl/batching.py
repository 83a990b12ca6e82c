"""Cutting sequences of unequal length into batches of so many tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches_by_tokens(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Cut sequences into batches of at most ``token_budget`` tokens, pads included.

    Sequences are taken from long to short, so that neighbours are of like length and the largest comes first. One that
    is longer than the budget has a batch to itself.

    Yields:
        Indices into ``lengths``.
    """
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if rows and (len(rows) + 1) * lengths[rows[0]] > token_budget:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows

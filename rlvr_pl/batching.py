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


def even_batches(sizes: Sequence[int], budget: int, multiple: int) -> list[list[int]]:
    """Share out items over as few batches as keep a budget, all of about the same size.

    The largest item goes first, each to the batch that has least so far (longest processing time first: the fullest
    batch has at most 4/3 of what the best division gives it; Graham, 1969).

    Args:
        sizes: of the items.
        budget: of a batch; one item alone may exceed it.
        multiple: of which the number of batches is one.

    Returns:
        Indices into ``sizes``; the fullest batch comes first, and empty ones where items are too few.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    count = multiple * max(1, -(-sum(min(size, budget) for size in sizes) // (budget * multiple)))
    while True:
        batches: list[list[int]] = [[] for _ in range(count)]
        fill = [0] * count
        for item in order:
            least = fill.index(min(fill))
            batches[least].append(item)
            fill[least] += sizes[item]
        if all(full <= budget or len(batch) < 2 for full, batch in zip(fill, batches, strict=True)):
            return [batch for _, batch in sorted(zip(fill, batches, strict=True), key=lambda pair: -pair[0])]
        count += multiple

"""Where each token of a micro-batch stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sequences:
    """Prompts and completions side by side, and where in them the completion tokens are.

    Made once for each micro-batch, on the host, from lengths that it knows: whoever scores waits for no device.
    """

    input_ids: Tensor  # (n, L) int64, prompt and completion of each row, padded on the right with 0
    predicting: Tensor  # (tokens,) int64, places in (n · L) whose next token is one of a completion
    targets: Tensor  # (tokens,) int64, the completion tokens
    places: Tensor  # (tokens,) int64, their places in (n · T)
    shape: tuple[int, int]  # (n, T)


def lay_out(prompt_ids: Sequence[Sequence[int]], completion_ids: Tensor, lengths: Sequence[int]) -> Sequences:
    """Put prompts and completions side by side.

    Args:
        prompt_ids: n prompts, unpadded.
        completion_ids: (n, T), padded on the right; may lie on a device.
        lengths: n, the tokens of each completion.
    """
    rows, width = completion_ids.shape
    prompts = np.array([len(prompt) for prompt in prompt_ids])
    completions = np.array(lengths)
    longest = int((prompts + completions).max())
    column = np.arange(longest)
    in_prompt = column < prompts[:, None]
    in_row = column < (prompts + completions)[:, None]
    # Where each token comes from: the prompts' tokens one after the other, then the completions', then a 0.
    flat = np.concatenate([np.asarray(prompt, dtype=np.int64) for prompt in prompt_ids])
    of_prompt = np.cumsum(prompts)[:, None] - prompts[:, None] + column
    of_completion = len(flat) + width * np.arange(rows)[:, None] + column - prompts[:, None]
    sources = np.where(in_prompt, of_prompt, np.where(in_row, of_completion, len(flat) + rows * width))
    row, token = np.nonzero(np.arange(width) < completions[:, None])
    predicting = row * longest + prompts[row] + token - 1  # position t − 1 predicts token t
    parts = (flat, sources.ravel(), predicting, row * width + token)
    on_device = torch.from_numpy(np.concatenate(parts)).to(completion_ids.device)  # one upload for all of them
    prompt_tokens, sources, predicting, places = on_device.split([len(part) for part in parts])
    tokens = torch.cat((prompt_tokens, completion_ids.flatten(), prompt_tokens.new_zeros(1)))
    return Sequences(
        input_ids=tokens[sources].view(rows, longest),
        predicting=predicting,
        targets=completion_ids.flatten()[places],
        places=places,
        shape=(rows, width),
    )

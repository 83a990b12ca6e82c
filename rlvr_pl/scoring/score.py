"""A forward pass of a micro-batch, without the logits of its prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rlvr_pl.scoring.head import token_scores
from rlvr_pl.scoring.layout import Sequences
from rlvr_pl.scoring.take import take
from rlvr_pl.sharding.weights import forward_by


class Scored(Protocol):
    """What scoring asks of a causal language model: its body, and its output embedding."""

    @property
    def base_model(self) -> Any: ...

    def get_output_embeddings(self) -> Any: ...


@dataclass(frozen=True)
class TokenScores:
    """Scores of each completion token, (n, T), 0 on pads."""

    logprobs: Tensor  # float32 (float64 of a policy in float64), with gradient where it is enabled
    entropy: Tensor | None  # of the next-token distribution in nats, without gradient, where it was asked for


def score(policy: Scored, sequences: Sequences, temperature: float, with_entropy: bool = True) -> TokenScores:
    """Compute the log-probabilities of the completion tokens under the tempered policy, and its entropy there.

    The body runs under whatever autocast is active. The output embedding and the softmax run in float32, for GSPO's
    clip band is 3e-4 wide, and bfloat16 logits alone move a mean log-ratio by that much.

    On a GPU, where the body is in half precision, the output embedding's products are TF32. They move the mean
    log-ratio of 400 tokens by 7e-6 (rms, by ``benchmarks/head_precision.py``), where a tenth of the band is 3e-5.
    Products of float32 numbers that are first rounded to bfloat16 move it by 4e-5. Weights that are bfloat16 themselves
    (bf16-true) lose nothing more: their products are exact, and summed in float32. Under 32-true products are as exact
    as PyTorch is set to be.

    Args:
        policy: a causal language model with an output embedding.
        sequences: n of them, with T completion tokens at most.
        temperature: of the sampler, which the scored distribution must share.
        with_entropy: whether the entropy is wanted.
    """
    # Autocast keeps its casts of the weights for as long as the outermost context lasts, here a whole training step:
    # one made under no_grad has no gradient, and one made before an optimizer step is stale.
    torch.clear_autocast_cache()

    def token_scores_of_policy() -> tuple[Tensor, Tensor | None]:
        hidden = _hidden_states(policy, sequences)
        head = policy.get_output_embeddings()
        half = torch.is_autocast_enabled(hidden.device.type) or hidden.dtype != torch.float32
        with torch.autocast(device_type=hidden.device.type, enabled=False):
            return token_scores(
                hidden, head.weight, getattr(head, "bias", None), sequences.targets, temperature, half, with_entropy
            )

    logprobs, entropy = forward_by(policy, token_scores_of_policy)
    n, T = sequences.shape
    zeros = logprobs.new_zeros(n * T)
    return TokenScores(
        logprobs=zeros.index_copy(0, sequences.places, logprobs).view(n, T),
        entropy=None if entropy is None else zeros.index_copy(0, sequences.places, entropy).view(n, T),
    )


def hidden_states(policy: Scored, sequences: Sequences) -> Tensor:
    """Compute the hidden states that predict the completion tokens, (tokens, H)."""
    return forward_by(policy, lambda: _hidden_states(policy, sequences))


def _hidden_states(policy: Scored, sequences: Sequences) -> Tensor:
    layout: dict[str, Any] = {}  # none for padded rows: pads stand on the right, where causal attention does not look
    if sequences.packing is not None:
        layout = {
            "packing": sequences.packing,
            "position_ids": sequences.position_ids,
            # A mask that is already made keeps transformers from making one. Packed groups do not read it.
            "attention_mask": sequences.input_ids.new_zeros((1, 1, 1, 1), dtype=torch.bool),
        }
    output = policy.base_model(input_ids=sequences.input_ids, use_cache=False, **layout)
    hidden: Tensor = output.last_hidden_state.flatten(0, 1)
    return take(hidden, sequences.predicting)

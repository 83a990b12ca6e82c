"""Log-probabilities of completions under a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

# Logits of one chunk, in numbers: 2²⁸ float32 are 1 GiB. With 151,936 tokens in the vocabulary that is 1,766 positions.
_CHUNK_LOGITS = 2**28


@dataclass(frozen=True)
class TokenScores:
    """Scores of each completion token, (n, T), 0 on pads."""

    logprobs: Tensor  # float32, with gradient where it is enabled
    entropy: Tensor  # float32, of the next-token distribution in nats, without gradient


def score(
    policy: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Tensor,
    mask: Tensor,
    temperature: float,
) -> TokenScores:
    """Compute the log-probabilities of the completion tokens under the tempered policy, and its entropy there.

    The body runs under whatever autocast is active; the output embedding and the softmax run in float32. GSPO's clip
    band is 3e-4 wide, and bfloat16 logits alone move a mean log-ratio by that much.

    Args:
        policy: a causal language model with an output embedding.
        prompt_ids: n prompts, unpadded.
        completion_ids: (n, T), padded on the right.
        mask: (n, T) bool, True on completion tokens.
        temperature: of the sampler, which the scored distribution must share.
    """
    # Autocast keeps its casts of the weights for as long as the outermost context lasts, here a whole training step:
    # one made under no_grad has no gradient, and one made before an optimizer step is stale.
    torch.clear_autocast_cache()
    device = completion_ids.device
    prompt_lengths = torch.tensor([len(p) for p in prompt_ids], device=device)
    input_ids = _concatenate(prompt_ids, completion_ids, mask)
    # No attention mask: pads stand on the right, where causal attention does not look.
    hidden = policy.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    row, column = mask.nonzero(as_tuple=True)
    hidden = hidden[row, prompt_lengths[row] + column - 1]  # (tokens, H); position t − 1 predicts token t
    head = policy.get_output_embeddings()
    bias = getattr(head, "bias", None)
    with torch.autocast(device_type=device.type, enabled=False):
        logprobs, entropy = _score_positions(
            hidden.float(),
            head.weight.float(),
            None if bias is None else bias.float(),
            completion_ids[mask],
            temperature,
        )
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=device)
    return TokenScores(
        logprobs=zeros.masked_scatter(mask, logprobs), entropy=zeros.masked_scatter(mask, entropy.detach())
    )


def _concatenate(prompt_ids: Sequence[Sequence[int]], completion_ids: Tensor, mask: Tensor) -> Tensor:
    """Prompt and completion of each row side by side, padded on the right with 0; (n, L)."""
    completions = [ids[: int(length)] for ids, length in zip(completion_ids, mask.sum(dim=1).tolist(), strict=True)]
    rows = [
        torch.cat([torch.tensor(list(prompt), device=completion_ids.device), completion])
        for prompt, completion in zip(prompt_ids, completions, strict=True)
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _score_positions(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy, (tokens,), a chunk of positions at a time.

    Where there are several chunks, their logits are computed again in the backward pass rather than kept.
    """

    def chunk_scores(chunk_hidden: Tensor, chunk_targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.nn.functional.linear(chunk_hidden, weight, bias) / temperature
        normalizer = logits.logsumexp(dim=-1)
        logprobs = logits.gather(-1, chunk_targets.unsqueeze(-1)).squeeze(-1) - normalizer
        with torch.no_grad():
            entropy = normalizer - (logits.softmax(dim=-1) * logits).sum(dim=-1)
        return logprobs, entropy

    size = max(1, _CHUNK_LOGITS // weight.shape[0])
    if len(targets) <= size:
        return chunk_scores(hidden, targets)
    chunks = [
        checkpoint(chunk_scores, h, t, use_reentrant=False)
        for h, t in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    logprobs, entropies = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)

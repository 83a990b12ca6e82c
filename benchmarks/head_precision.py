"""What the output embedding's precision does to GSPO's ratio: ``python benchmarks/head_precision.py``.

GSPO's band is 3e-4 wide, and its log-ratio is a mean over a completion's tokens. A policy with Qwen2.5-1.5B's head
(151,936 × 1,536, random) before and after an optimizer step scores completions of 400 tokens. The products are computed
as each kind of unit would, emulated by rounding their inputs: products of rounded inputs with float32 sums are what
tensor cores give. Printed is the error of the mean log-ratio against float64.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

BAND = 3e-4
TOKENS = 400
LEARNING_RATE = 2e-6  # of configs/qwen_gsm8k.yaml: AdamW moves every weight by about as much
HIDDEN_STEP = 1e-3  # relative change of a hidden state in a step, through all the layers before it
TOP_LOGIT = 22.0  # of the token that follows: a trained policy is sure of most


def rounded(x: Tensor, mantissa_bits: int) -> Tensor:
    """Round float32 numbers to so many explicit bits of mantissa, to nearest even."""
    drop = 23 - mantissa_bits
    bits = x.contiguous().view(torch.int32)
    half = (1 << (drop - 1)) - 1 + ((bits >> drop) & 1)
    return ((bits + half) & ~((1 << drop) - 1)).view(torch.float32)


def products(hidden: Tensor, weight: Tensor, kind: str) -> Tensor:
    """Compute logits as a kind of unit would."""
    if kind == "float32":
        return hidden @ weight.T
    if kind == "TF32":
        return rounded(hidden, 10) @ rounded(weight, 10).T
    if kind == "bfloat16":
        return rounded(hidden, 7) @ rounded(weight, 7).T
    if kind == "bfloat16, output too":
        return rounded(rounded(hidden, 7) @ rounded(weight, 7).T, 7)
    high, w_high = rounded(hidden, 7), rounded(weight, 7)  # 3 × bfloat16
    low, w_low = rounded(hidden - high, 7), rounded(weight - w_high, 7)
    return high @ w_high.T + (high @ w_low.T + low @ w_high.T)


KINDS = ("float32", "TF32", "3 × bfloat16", "bfloat16", "bfloat16, output too")


def logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1536)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(arguments.vocabulary, arguments.hidden)
    moved = weight + LEARNING_RATE * torch.randn_like(weight).sign()
    errors: dict[str, list[float]] = {kind: [] for kind in KINDS}
    ratios = []
    for _ in range(arguments.completions):
        targets = torch.randint(arguments.vocabulary, (TOKENS,))
        towards = weight[targets] / weight[targets].norm(dim=1, keepdim=True)
        sure = TOP_LOGIT / weight[targets].norm(dim=1, keepdim=True) * torch.rand(TOKENS, 1).sqrt()
        hidden = torch.randn(TOKENS, arguments.hidden) + sure * towards
        stepped = hidden + HIDDEN_STEP * hidden.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(
            torch.randn_like(hidden), dim=1
        )
        pairs = ((stepped, moved), (hidden, weight))
        new, old = (logprobs(h.double() @ w.double().T, targets) for h, w in pairs)
        exact = (new - old).mean().item()
        ratios.append(exact)
        for kind in KINDS:
            new, old = (logprobs(products(h, w, kind), targets) for h, w in pairs)
            errors[kind].append((new.double() - old.double()).mean().item() - exact)
    size = torch.tensor(ratios).abs().mean().item()
    print(f"{arguments.completions} completions of {TOKENS} tokens; mean |log-ratio| {size:.1e}; band {BAND:.0e}\n")
    print("| products | error of the mean log-ratio, rms | worst | worst, share of the band |\n|---|--:|--:|--:|")
    for kind, values in errors.items():
        error = torch.tensor(values, dtype=torch.float64)
        worst = error.abs().max().item()
        print(f"| {kind} | {error.square().mean().sqrt().item():.1e} | {worst:.1e} | {worst / BAND:.1%} |")


if __name__ == "__main__":
    main()

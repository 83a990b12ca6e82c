"""What π_old from the sampler does to each objective's ratio: ``python benchmarks/old_logprobs.py``.

The embedded policy answers training questions and scores its own completions before any optimizer step, where every
ratio should be 1. Scored again they are, exactly; against the sampler's log-probabilities (``old_logprobs: sampled``)
they are off by rounding. Printed is by how much, how many ratios a clip would cut for that alone, and how far the
gradient of the first step turns. Precisions are the trainer's: float32, and bfloat16 under autocast with float32
weights (bf16-mixed), where the sampler multiplies a bfloat16 copy of them.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a checkout

from rlvr_pl.data import GSM8KDataModule
from rlvr_pl.losses import GRPO, GSPO, DrGRPO, LossStrategy
from rlvr_pl.pretrained import load_config, load_policy, load_tokenizer, stop_token_ids
from rlvr_pl.randomness import rollout_noise
from rlvr_pl.rewards import Completion, RewardSum, RewardTerm, correctness, tag_format
from rlvr_pl.rollout import LeanEngine, Sampling
from rlvr_pl.scoring import choose_layout, use_lean_layers
from rlvr_pl.types import LossInputs, LossOutput, Question, Rollout
from rlvr_pl.update import OldPolicy, Update, cut_into_minibatches

GROUP, BUDGET = 16, 96
OBJECTIVES: list[LossStrategy] = [GRPO(beta=0.0), DrGRPO(), GSPO()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    prompts = parser.parse_args().prompts
    data = GSM8KDataModule("embedded", tokenizer="embedded")
    data.setup()
    questions = data.questions["train"][:prompts]
    tokenizer = load_tokenizer("embedded")
    table = Table("precision", "objective", "|log-ratio| rms", "worst", "clipped", "gradient turned by", "longer by")
    for precision in ("32-true", "bf16-mixed"):
        policy = load_policy("embedded", load_config("embedded")).train()
        use_lean_layers(policy)
        stops = stop_token_ids(policy, tokenizer)
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext():
            engine = LeanEngine(policy, stops, 0)
            noise = rollout_noise(0, 0, range(prompts), GROUP, BUDGET)
            prompt_ids = [question.prompt_ids for question in questions]
            rollout = engine.generate(prompt_ids, GROUP, Sampling(BUDGET, 1.0), noise)
            layout = choose_layout(policy)
            rewards = rewards_of(rollout, questions, tokenizer).view(-1, GROUP)
            for loss in OBJECTIVES:
                advantages = loss.advantages(rewards).flatten()
                (minibatch,) = cut_into_minibatches(rollout, advantages, loss, layout, 1, 16384, BUDGET)
                gradients, clipped = [], 0.0
                for old_policy in (OldPolicy(), OldPolicy(sampled=True)):
                    policy.zero_grad()
                    spy = _Spy(loss)
                    update = Update([minibatch], spy, policy, [], 1.0, torch.device("cpu"), old_policy)
                    for numerator in update.losses(minibatch):
                        (numerator / minibatch.denominator).backward()
                    update.stats.add_step(1.0)
                    means = update.stats.means()
                    clipped = means["clip_fraction_low"] + means["clip_fraction_high"]
                    gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
                exact, other = gradients
                cosine = torch.nn.functional.cosine_similarity(exact.double(), other.double(), dim=0).clamp(max=1)
                off = torch.cat(spy.log_ratios)
                table.add_row(
                    precision,
                    type(loss).__name__,
                    f"{off.square().mean().sqrt():.1e}",
                    f"{off.abs().max():.1e}",
                    f"{clipped:.2%}",
                    f"{torch.rad2deg(torch.arccos(cosine)):.2f}°",
                    f"{other.norm() / exact.norm() - 1:+.2%}",
                )
    Console(width=120).print(table)


class _Spy(LossStrategy):
    """An objective that notes the log-ratios of what counts."""

    def __init__(self, loss: LossStrategy) -> None:
        vars(self).update(vars(loss))
        self.log_ratios: list[Tensor] = []

    def __call__(self, inputs: LossInputs) -> LossOutput:
        log_ratio = self.log_ratio(inputs).detach()
        counts = inputs.mask if log_ratio.shape == inputs.mask.shape else inputs.mask.any(dim=1, keepdim=True)
        self.log_ratios.append(log_ratio[counts])
        return super().__call__(inputs)


def rewards_of(rollout: Rollout, questions: list[Question], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The published rewards, (N,)."""
    texts = tokenizer.batch_decode(
        [row[mask] for row, mask in zip(rollout.completion_ids, rollout.mask, strict=True)], skip_special_tokens=True
    )
    rows = zip(texts, rollout.by_row(questions), rollout.lengths.tolist(), rollout.truncated.tolist(), strict=True)
    completions = [Completion(text, q.question, q.gold, n, cut) for text, q, n, cut in rows]
    return RewardSum([RewardTerm(correctness), RewardTerm(tag_format)])(completions).total.float()


if __name__ == "__main__":
    main()

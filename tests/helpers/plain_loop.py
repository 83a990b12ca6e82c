"""A fit on given rollouts, and the same update as a plain loop over sequences without padding or micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlvr_pl.losses import GRPO, GSPO, DrGRPO, GSPOToken, LossStrategy
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.rewards import Completion, RewardTerm
from rlvr_pl.rollout import Sampling
from rlvr_pl.types import PromptBatch, Question, Rollout

VOCABULARY = 40
T_MAX = 9  # the budget; the longest completion has 7 tokens
TEMPERATURE = 0.8
GROUP = 4
PROMPT_LENGTHS = [3, 1, 6, 2]
LENGTHS = [5, 2, 7, 1, 3, 3, 6, 4, 1, 7, 2, 5, 4, 4, 6, 3]
REWARDS = [1.0, 0.0, 0.0, 2.0, 0.5, 0.5, 0.0, 2.8, 0.2, 0.2, 0.2, 0.2, 0.0, 0.0, 1.5, 0.0]  # group 2 has no variance


# A rollout as given, and its rewards


def fixed_rollout(seed: int = 0) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    prompts = [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]
    return Rollout(
        prompt_ids=prompts,
        group_size=GROUP,
        completion_ids=torch.randint(1, VOCABULARY, mask.shape, generator=generator).masked_fill(~mask, 0),
        mask=mask,
        sampling_logprobs=torch.full(mask.shape, math.nan),  # the update scores for itself
        truncated=torch.zeros(len(LENGTHS), dtype=torch.bool),
    )


@dataclass
class FixedEngine:
    """Returns the given rollouts in turn, and notes the weights as they are before each."""

    policy: PreTrainedModel
    rollouts: Sequence[Rollout]
    weights: list[dict[str, Tensor]] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, noise: Tensor | None
    ) -> Rollout:
        rollout = self.rollouts[len(self.weights)]
        assert [list(p) for p in prompts] == list(rollout.prompt_ids)
        assert (group_size, sampling) == (GROUP, Sampling(T_MAX, TEMPERATURE))
        assert noise is not None
        assert noise.shape == (len(LENGTHS), T_MAX)
        self.weights.append(weights_of(self.policy))
        return rollout


@dataclass
class TableOfRewards:
    """The rewards of the rollouts' completions in turn, which come in order."""

    rewards: Iterator[float]
    __name__ = "table"

    def __call__(self, completion: Completion) -> float:
        return next(self.rewards)


@dataclass
class Prompts:
    """A loader of one batch of prompts for each rollout."""

    rollouts: Sequence[Rollout]

    def __iter__(self) -> Iterator[PromptBatch]:
        for number, rollout in enumerate(self.rollouts):
            questions = [Question(i, "How many?", "1", "", tuple(ids)) for i, ids in enumerate(rollout.prompt_ids)]
            yield PromptBatch(questions, indices=range(len(questions)), rollout=number)

    def __len__(self) -> int:
        return len(self.rollouts)


def weights_of(policy: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def assert_weights(actual: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-5) -> None:
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=0, atol=atol, msg=partial("{}: {}".format, name))


OptimizerFactory = Callable[..., torch.optim.Optimizer]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.5)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Its epsilon keeps the rounding of a gradient near 0 from deciding the sign of a step."""
    return torch.optim.AdamW(parameters, lr=3e-3, eps=1e-3, weight_decay=0.1)


@dataclass
class Fitted:
    module: GroupPolicyModule
    engine: FixedEngine
    trainer: Trainer

    @property
    def weights(self) -> dict[str, Tensor]:
        return weights_of(self.module.policy)

    @property
    def logged(self) -> dict[str, float]:
        """The diagnostics of the last rollout."""
        return {name: value.item() for name, value in self.trainer.callback_metrics.items()}


def prepare(
    folder: Path,
    loss: LossStrategy,
    rollouts: Sequence[Rollout] | None = None,
    rewards: Sequence[float] = REWARDS,
    optimizer: OptimizerFactory = sgd,
    precision: Any = "32-true",
    **settings: Any,
) -> Fitted:
    rollouts = rollouts or [fixed_rollout()]
    module = GroupPolicyModule(
        str(folder),
        loss,
        rewards=[RewardTerm(TableOfRewards(iter(rewards)))],
        optimizer=optimizer,
        group_size=GROUP,
        max_completion_tokens=T_MAX,
        temperature=TEMPERATURE,
        seed=0,
        **settings,
    )
    module.configure_model()
    module.engine = engine = FixedEngine(module.policy, rollouts)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return Fitted(module, engine, trainer)


def fit(folder: Path, loss: LossStrategy, **settings: Any) -> Fitted:
    fitted = prepare(folder, loss, **settings)
    fitted.trainer.fit(fitted.module, Prompts(fitted.engine.rollouts))
    return fitted


# The reference


@dataclass(frozen=True)
class Objective:
    """What the reference reads of an objective; its strategy is built from the same numbers."""

    name: str
    clip_low: float
    clip_high: float
    beta: float = 0.0

    @property
    def strategy(self) -> LossStrategy:
        classes = {"GRPO": GRPO, "DrGRPO": DrGRPO, "GSPO": GSPO, "GSPOToken": GSPOToken}
        return classes[self.name](clip_low=self.clip_low, clip_high=self.clip_high, beta=self.beta)


@dataclass
class Plain:
    """The update as the papers write it, one sequence after another."""

    model: PreTrainedModel
    objective: Objective
    optimizer: torch.optim.Optimizer
    max_grad_norm: float | None
    initial: PreTrainedModel
    ratios: list[Tensor] = field(default_factory=list)  # of each sequence seen, in all steps
    advantages: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    kl_ref: list[Tensor] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)

    def advantages_of(self, rewards: Sequence[float]) -> Tensor:
        groups = torch.tensor(rewards, dtype=torch.float64).view(-1, GROUP)
        centered = groups - groups.mean(1, keepdim=True)
        if self.objective.name == "DrGRPO":
            return centered.flatten().float()
        return (centered / (groups.std(1, keepdim=True) + 1e-4)).flatten().float()

    def logprobs(self, model: PreTrainedModel, rollout: Rollout, i: int) -> Tensor:
        prompt, answer = rollout.prompt_ids[i // GROUP], rollout.completion_ids[i, : LENGTHS[i]]
        logits = model(torch.cat([torch.tensor(prompt), answer]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        return (logits / TEMPERATURE).log_softmax(-1).gather(1, answer.unsqueeze(1)).squeeze(1)

    def sequence_loss(self, rollout: Rollout, i: int, advantage: Tensor, old: Tensor) -> Tensor:
        logprobs = self.logprobs(self.model, rollout, i)
        log_ratio = logprobs - old
        if self.objective.name.startswith("GSPO"):
            log_ratio = log_ratio.mean().expand(len(old))
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - self.objective.clip_low, 1 + self.objective.clip_high)
        loss = -torch.minimum(ratio * advantage, clipped * advantage)
        if self.objective.beta > 0:
            d = self.logprobs(self.initial, rollout, i) - logprobs
            kl_ref = d.exp() - d - 1
            loss = loss + self.objective.beta * kl_ref
            self.kl_ref.append(kl_ref.detach())
        self.ratios.append(ratio.detach()[: 1 if self.objective.name == "GSPO" else None])
        self.advantages.append(advantage.expand_as(self.ratios[-1]))
        self.kl.append((old - logprobs).exp().detach() - (old - logprobs).detach() - 1)
        return loss.sum() / T_MAX if self.objective.name == "DrGRPO" else loss.mean()

    def update(self, rollout: Rollout, rewards: Sequence[float], minibatches: int, epochs: int) -> None:
        advantages = self.advantages_of(rewards)
        with torch.no_grad():
            old = [self.logprobs(self.model, rollout, i) for i in range(len(LENGTHS))]
        for _ in range(epochs):
            for rows in torch.arange(len(LENGTHS)).view(minibatches, -1).tolist():
                losses = [self.sequence_loss(rollout, i, advantages[i], old[i]) for i in rows]
                self.optimizer.zero_grad()
                (sum(losses, torch.zeros(())) / len(rows)).backward()
                norm = torch.stack([p.grad.norm() for p in self.model.parameters() if p.grad is not None]).norm().item()
                if self.max_grad_norm is not None and norm > self.max_grad_norm:
                    for parameter in self.model.parameters():
                        assert parameter.grad is not None
                        parameter.grad.mul_(self.max_grad_norm / norm)
                self.grad_norms.append(norm)
                self.optimizer.step()

    def diagnostics(self) -> dict[str, float]:
        """Over the sequences that learned: without a KL term, those whose advantage is not 0."""
        seen = [i for i, a in enumerate(self.advantages) if self.objective.beta > 0 or bool(a[0] != 0)]
        ratio = torch.cat([self.ratios[i] for i in seen])
        advantage = torch.cat([self.advantages[i] for i in seen])
        low = (advantage < 0) & (ratio < 1 - self.objective.clip_low)
        high = (advantage > 0) & (ratio > 1 + self.objective.clip_high)
        diagnostics = {"train/kl_ref": torch.cat(self.kl_ref).mean().item()} if self.kl_ref else {}
        return diagnostics | {
            "train/ratio_mean": ratio.mean().item(),
            "train/ratio_max": ratio.max().item(),
            "train/clip_fraction_low": low.double().mean().item(),
            "train/clip_fraction_high": high.double().mean().item(),
            "train/kl": torch.cat([self.kl[i] for i in seen]).mean().item(),
            "train/grad_norm": sum(self.grad_norms) / len(self.grad_norms),
        }


def plain(
    folder: Path, objective: Objective, optimizer: OptimizerFactory = sgd, max_grad_norm: float | None = 1.0
) -> Plain:
    model, initial = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    return Plain(model, objective, optimizer(model.parameters()), max_grad_norm, initial.requires_grad_(False))

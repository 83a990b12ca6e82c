"""The update of a rollout under a trainer, against a plain loop over sequences without padding or micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rlvr_pl.losses import GRPO, GSPO, DrGRPO, GSPOToken, LossStrategy
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.rewards import Completion, RewardTerm
from rlvr_pl.rollout import LeanEngine, Sampling
from rlvr_pl.types import PromptBatch, Question, Rollout
from tests.models import tiny_model

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")

VOCABULARY = 40
T_MAX = 9  # the budget; the longest completion has 7 tokens
TEMPERATURE = 0.8
GROUP = 4
PROMPT_LENGTHS = [3, 1, 6, 2]
LENGTHS = [5, 2, 7, 1, 3, 3, 6, 4, 1, 7, 2, 5, 4, 4, 6, 3]
REWARDS = [1.0, 0.0, 0.0, 2.0, 0.5, 0.5, 0.0, 2.8, 0.2, 0.2, 0.2, 0.2, 0.0, 0.0, 1.5, 0.0]  # group 2 has no variance


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a tokenizer of the words t0, t1, …; t0 is the end-of-sequence token."""
    folder = tmp_path_factory.mktemp("model")
    settings = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "initializer_range": 0.2, "eos_token_id": 0}
    tiny_model(**settings).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t1"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t0").save_pretrained(folder)
    return folder


# A rollout as given, and its rewards


def fixed_rollout(seed: int = 0) -> Rollout:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    prompts = [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]
    return Rollout(
        prompt_ids=[prompt for prompt in prompts for _ in range(GROUP)],
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
        assert [list(p) for p in prompts] == list(rollout.prompt_ids[::GROUP])
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
            questions = [
                Question(i, "How many?", "1", "", tuple(ids)) for i, ids in enumerate(rollout.prompt_ids[::GROUP])
            ]
            yield PromptBatch(questions, slots=range(len(questions)), rollout=number)

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
        prompt, answer = rollout.prompt_ids[i], rollout.completion_ids[i, : LENGTHS[i]]
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


# The update

OBJECTIVES = {
    "GRPO": Objective("GRPO", 0.2, 0.2),
    "DrGRPO": Objective("DrGRPO", 0.1, 0.3),
    "GSPO": Objective("GSPO", 0.05, 0.08),
    "GRPO, beta": Objective("GRPO", 0.2, 0.2, beta=0.04),
    "DrGRPO, beta": Objective("DrGRPO", 0.1, 0.3, beta=0.04),
    "GSPO, beta": Objective("GSPO", 0.05, 0.08, beta=0.04),
}


@dataclass(frozen=True)
class Schedule:
    minibatches_per_rollout: int
    epochs_per_rollout: int
    micro_batch_tokens: int
    max_grad_norm: float | None

    @property
    def steps(self) -> int:
        return self.minibatches_per_rollout * self.epochs_per_rollout


SCHEDULES = [
    Schedule(1, 1, 20, 0.5),
    Schedule(1, 2, 10_000, None),
    Schedule(2, 1, 10_000, 0.5),
    Schedule(2, 2, 20, None),
    Schedule(4, 1, 20, 2.0),
    Schedule(4, 2, 30, 0.5),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: "-".join(str(v) for v in vars(s).values()))
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_weights_and_diagnostics_are_those_of_the_plain_loop(
    objective: Objective, schedule: Schedule, model_folder: Path
) -> None:
    expected = plain(model_folder, objective, max_grad_norm=schedule.max_grad_norm)
    expected.update(fixed_rollout(), REWARDS, schedule.minibatches_per_rollout, schedule.epochs_per_rollout)
    fitted = fit(model_folder, objective.strategy, **vars(schedule))
    assert_weights(fitted.weights, weights_of(expected.model))
    diagnostics = expected.diagnostics()
    assert {name: fitted.logged[name] for name in diagnostics} == pytest.approx(diagnostics, rel=1e-4, abs=1e-6)
    assert ("train/kl_ref" in fitted.logged) == (objective.beta > 0)
    assert len(expected.grad_norms) == schedule.steps
    if schedule.max_grad_norm == 0.5:
        assert max(expected.grad_norms) > 0.5
    if schedule.epochs_per_rollout > 1:  # else little would be clipped
        assert 0.03 < diagnostics["train/clip_fraction_low"] < 0.5
        assert 0.03 < diagnostics["train/clip_fraction_high"] < 0.5


def test_gspo_token_learns_what_gspo_does(model_folder: Path) -> None:
    schedule = vars(SCHEDULES[3])
    token = fit(model_folder, Objective("GSPOToken", 0.05, 0.08).strategy, **schedule)
    sequence = fit(model_folder, OBJECTIVES["GSPO"].strategy, **schedule)
    assert_weights(token.weights, sequence.weights)


@pytest.mark.parametrize("objective", [OBJECTIVES["GRPO, beta"], OBJECTIVES["DrGRPO"]], ids=["GRPO", "DrGRPO"])
def test_several_rollouts_with_adamw(objective: Objective, model_folder: Path) -> None:
    """Rewards and prompts of each rollout its own; the reference policy stays the initial one."""
    rollouts = [fixed_rollout(seed) for seed in range(3)]
    rewards = [REWARDS, REWARDS[::-1], REWARDS[3:] + REWARDS[:3]]
    expected = plain(model_folder, objective, adamw)
    for rollout, values in zip(rollouts, rewards, strict=True):
        expected.update(rollout, values, minibatches=2, epochs=1)
    fitted = fit(
        model_folder,
        objective.strategy,
        rollouts=rollouts,
        rewards=[value for values in rewards for value in values],
        optimizer=adamw,
        minibatches_per_rollout=2,
        micro_batch_tokens=25,
    )
    assert_weights(fitted.weights, weights_of(expected.model))
    assert fitted.module.rollouts_done == 3
    assert fitted.module.completion_tokens == 3 * sum(LENGTHS)


def test_one_update_a_rollout_is_exactly_on_policy(model_folder: Path) -> None:
    fitted = fit(
        model_folder,
        OBJECTIVES["GRPO"].strategy,
        minibatches_per_rollout=1,
        micro_batch_tokens=20,
    )
    names = ("ratio_mean", "ratio_max", "clip_fraction_low", "clip_fraction_high", "kl")
    assert [fitted.logged[f"train/{name}"] for name in names] == [1.0, 1.0, 0.0, 0.0, 0.0]


# What is logged of a rollout


@pytest.mark.parametrize("schedule", [SCHEDULES[0], SCHEDULES[3], SCHEDULES[5]], ids=["1-1", "2-2", "4-2"])
@pytest.mark.parametrize("objective", ["GRPO", "GRPO, beta"])
def test_the_mismatch_with_the_engines_logprobs(objective: str, schedule: Schedule, model_folder: Path) -> None:
    """Each token counts once, whatever the number of passes, against the weights that the rollout was sampled with."""
    rollout = fixed_rollout()
    before = plain(model_folder, OBJECTIVES[objective])
    sampled = torch.full(rollout.mask.shape, math.nan)
    for i, length in enumerate(LENGTHS):
        distance = (-1) ** i * (i + 1) / 100
        sampled[i, :length] = before.logprobs(before.model, rollout, i).detach() + distance
    fitted = fit(
        model_folder,
        OBJECTIVES[objective].strategy,
        rollouts=[replace(rollout, sampling_logprobs=sampled)],
        **vars(schedule),
    )
    learns = [i for i in range(16) if objective == "GRPO, beta" or i not in range(8, 12)]  # group 2 has no variance
    mean = sum(LENGTHS[i] * (i + 1) / 100 for i in learns) / sum(LENGTHS[i] for i in learns)
    assert fitted.logged["rollout/logprob_mismatch"] == pytest.approx(mean, abs=1e-6)
    assert fitted.logged["rollout/logprob_mismatch_max"] == pytest.approx(0.16, abs=1e-5)


def test_the_lean_engines_logprobs_match_up_to_rounding(model_folder: Path) -> None:
    fitted = prepare(model_folder, OBJECTIVES["GRPO, beta"].strategy, minibatches_per_rollout=2)
    prompts = fitted.engine.rollouts
    fitted.module.engine = LeanEngine(fitted.module.policy, [0], 0)
    fitted.trainer.fit(fitted.module, Prompts(prompts))
    assert 0 < fitted.logged["rollout/logprob_mismatch"] < 1e-6
    assert fitted.logged["rollout/logprob_mismatch"] < fitted.logged["rollout/logprob_mismatch_max"] < 1e-5


def test_what_is_logged_of_a_rollout(model_folder: Path) -> None:
    logged = fit(model_folder, OBJECTIVES["GRPO"].strategy).logged
    groups = torch.tensor(REWARDS).view(-1, GROUP)
    expected = {
        "train/reward": sum(REWARDS) / 16,
        "train/reward/table": sum(REWARDS) / 16,
        "train/reward_std": groups.std(1).mean().item(),
        "train/zero_variance_groups": 0.25,
        "train/accuracy": 0.0,
        "train/tokens_mean": sum(LENGTHS) / 16,
        "train/truncated_rate": 0.0,
        "train/lr": 0.05,
        "train/epoch": 0.0,
    }
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-6)


# Nothing to learn from


def test_without_any_advantage_the_optimizer_still_steps(model_folder: Path) -> None:
    """AdamW's momentum and weight decay move the weights on: a step that is skipped would change the run."""
    rollouts = [fixed_rollout(seed) for seed in range(2)]
    rewards = [REWARDS, [0.7] * 16]
    objective = OBJECTIVES["GRPO"]
    expected = plain(model_folder, objective, adamw)
    for rollout, values in zip(rollouts, rewards, strict=True):
        expected.update(rollout, values, minibatches=2, epochs=2)
    fitted = fit(
        model_folder,
        objective.strategy,
        rollouts=rollouts,
        rewards=[*rewards[0], *rewards[1]],
        optimizer=adamw,
        minibatches_per_rollout=2,
        epochs_per_rollout=2,
    )
    assert expected.grad_norms[4:] == [0.0] * 4
    assert_weights(fitted.weights, weights_of(expected.model))
    for name, weight in fitted.engine.weights[1].items():
        moved = (fitted.weights[name] - weight).abs().max().item()
        assert moved > 1e-4, name
    (state, *_) = fitted.trainer.optimizers[0].state.values()
    assert state["step"].item() == 8
    names = ("ratio_mean", "ratio_max", "clip_fraction_low", "kl", "entropy", "grad_norm")
    assert [fitted.logged[f"train/{name}"] for name in names] == [0.0] * 6


def test_a_minibatch_without_any_advantage_steps_too(model_folder: Path) -> None:
    """Group 2 is a minibatch by itself, and has no variance."""
    expected = plain(model_folder, OBJECTIVES["GSPO"], adamw)
    expected.update(fixed_rollout(), REWARDS, minibatches=4, epochs=1)
    fitted = fit(model_folder, OBJECTIVES["GSPO"].strategy, optimizer=adamw, minibatches_per_rollout=4)
    assert [norm == 0 for norm in expected.grad_norms] == [False, False, True, False]
    assert_weights(fitted.weights, weights_of(expected.model))


# A gradient that is not finite


@pytest.mark.parametrize(
    ("value", "broken_step", "max_grad_norm"),
    [(math.nan, 1, None), (math.inf, 1, 0.5), (math.inf, 2, None), (math.nan, 3, 0.5)],
)
def test_a_gradient_that_is_not_finite_ends_the_run_before_its_step(
    value: float, broken_step: int, max_grad_norm: float | None, model_folder: Path
) -> None:
    fitted = prepare(
        model_folder,
        OBJECTIVES["GRPO"].strategy,
        optimizer=adamw,
        minibatches_per_rollout=2,
        epochs_per_rollout=2,
        max_grad_norm=max_grad_norm,
    )
    before: list[dict[str, Tensor]] = []  # the weights at each backward pass, one a step

    def break_gradient(gradient: Tensor) -> Tensor:
        before.append(weights_of(fitted.module.policy))
        return gradient.index_fill(0, torch.tensor([3]), value) if len(before) == broken_step else gradient

    fitted.module.policy.get_output_embeddings().weight.register_hook(break_gradient)
    with pytest.raises(FloatingPointError, match="rollout 1 is not finite"):
        fitted.trainer.fit(fitted.module, Prompts(fitted.engine.rollouts))
    assert len(before) == broken_step
    assert_weights(fitted.weights, before[-1], atol=0)
    if broken_step > 1:
        assert not torch.equal(before[0]["lm_head.weight"], before[1]["lm_head.weight"])


# Around the update


def test_the_scheduler_steps_once_an_optimizer_step(model_folder: Path) -> None:
    fitted = fit(
        model_folder,
        OBJECTIVES["GRPO"].strategy,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        minibatches_per_rollout=2,
        epochs_per_rollout=2,
        micro_batch_tokens=20,
    )
    assert fitted.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 / 5)
    assert fitted.trainer.global_step == 4


@pytest.mark.parametrize("objective", [OBJECTIVES["GRPO"], OBJECTIVES["DrGRPO"]], ids=["GRPO", "DrGRPO"])
def test_a_reduction_over_ranks_may_work_in_place(
    objective: Objective, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DDP's does. Here a second rank counts for the denominator alone, which halves every gradient."""

    def reduce(value: Tensor, reduce_op: str) -> Tensor:
        return value.mul_(2) if reduce_op == "sum" else value

    def half(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.025, momentum=0.5)

    expected = plain(model_folder, objective, half, max_grad_norm=None)
    expected.update(fixed_rollout(), REWARDS, minibatches=2, epochs=2)
    fitted = prepare(
        model_folder,
        objective.strategy,
        minibatches_per_rollout=2,
        epochs_per_rollout=2,
        max_grad_norm=None,
    )
    monkeypatch.setattr(fitted.trainer.strategy, "reduce", reduce)
    fitted.trainer.fit(fitted.module, Prompts(fitted.engine.rollouts))
    assert_weights(fitted.weights, weights_of(expected.model))


def test_the_reference_policy_is_the_initial_one_and_no_part_of_the_module(model_folder: Path) -> None:
    fitted = fit(model_folder, OBJECTIVES["GRPO, beta"].strategy, minibatches_per_rollout=2)
    (reference,) = fitted.module.reference
    assert_weights(weights_of(reference), fitted.engine.weights[0], atol=0)
    assert not any(p.requires_grad or p.grad is not None for p in reference.parameters())
    held = {id(parameter) for parameter in fitted.module.parameters()}
    assert held == {id(parameter) for parameter in fitted.module.policy.parameters()}
    assert fit(model_folder, OBJECTIVES["GRPO"].strategy, minibatches_per_rollout=2).module.reference == ()


def test_gradient_checkpointing_learns_the_same(model_folder: Path) -> None:
    schedule = vars(SCHEDULES[3])
    checkpointed = fit(model_folder, OBJECTIVES["GRPO"].strategy, gradient_checkpointing=True, **schedule)
    assert_weights(checkpointed.weights, fit(model_folder, OBJECTIVES["GRPO"].strategy, **schedule).weights)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_mixed_precision_learns_nearly_the_same(gradient_checkpointing: bool, model_folder: Path) -> None:
    """Nothing is clipped, so that rounding stays rounding; a stale cast of a weight would be off by a third."""
    objective = Objective("GRPO", clip_low=1.0, clip_high=1e9, beta=0.04)
    schedule = vars(Schedule(1, 4, 10_000, 0.5))
    exact = fit(model_folder, objective.strategy, **schedule)
    mixed = fit(
        model_folder,
        objective.strategy,
        precision="bf16-mixed",
        gradient_checkpointing=gradient_checkpointing,
        **schedule,
    )
    initial, expected, actual = exact.engine.weights[0], exact.weights, mixed.weights
    moved = torch.cat([(expected[name] - initial[name]).flatten() for name in initial]).norm()
    apart = torch.cat([(expected[name] - actual[name]).flatten() for name in initial]).norm()
    assert {weight.dtype for weight in actual.values()} == {torch.float32}
    assert 0 < apart / moved < 0.03


def test_weights_in_bfloat16_can_be_trained_too(model_folder: Path) -> None:
    """``configs/published.yaml`` asks for it."""
    exact = fit(model_folder, OBJECTIVES["GRPO"].strategy, minibatches_per_rollout=1)
    half = fit(model_folder, OBJECTIVES["GRPO"].strategy, minibatches_per_rollout=1, precision="bf16-true")
    assert {weight.dtype for weight in half.weights.values()} == {torch.bfloat16}
    assert half.logged["train/grad_norm"] == pytest.approx(exact.logged["train/grad_norm"], rel=0.05)
    assert half.logged["train/tokens_mean"] == sum(LENGTHS) / 16

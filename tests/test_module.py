"""The update of a rollout under a trainer, against the plain loop of ``tests/helpers/plain_loop.py``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from rlvr_pl.lora import LoRA, add_adapter
from rlvr_pl.losses import GSPO
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.preflight import check_sharding
from rlvr_pl.rollout import LeanEngine
from rlvr_pl.schedule import LRSchedule
from rlvr_pl.sharding.strategy import ShardedStrategy
from rlvr_pl.types import ConfigError
from tests.helpers.plain_loop import (
    GROUP,
    LENGTHS,
    REWARDS,
    VOCABULARY,
    Objective,
    Prompts,
    adamw,
    assert_weights,
    fit,
    fixed_rollout,
    plain,
    prepare,
    sgd,
    weights_of,
)
from tests.helpers.policies import make_tiny_policy, tiny_model

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with a tokenizer of the words t0, t1, …; t0 is the end-of-sequence token."""
    folder = tmp_path_factory.mktemp("model")
    settings = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "initializer_range": 0.2, "eos_token_id": 0}
    tiny_model(seed=1, **settings).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({f"t{i}": i for i in range(VOCABULARY)}, unk_token="t1"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t0").save_pretrained(folder)
    return folder


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
        assert 0.05 < diagnostics["train/clip_fraction_low"] < 0.5
        assert 0.05 < diagnostics["train/clip_fraction_high"] < 0.5


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


@pytest.mark.parametrize("objective", ["GRPO, beta", "GSPO"])
def test_an_adapter_learns_what_the_plain_loop_teaches_it(objective: str, model_folder: Path) -> None:
    """Which knows nothing of adapters: peft's own forward, and a second model for the reference policy."""
    rollouts, lora = [fixed_rollout(seed) for seed in range(2)], LoRA(r=2, lora_alpha=16)
    expected = plain(model_folder, OBJECTIVES[objective], max_grad_norm=None)
    before = weights_of(expected.model)
    add_adapter(expected.model, lora, seed=0)
    expected.optimizer = sgd(p for p in expected.model.parameters() if p.requires_grad)
    for rollout in rollouts:
        expected.update(rollout, REWARDS, minibatches=2, epochs=2)
    fitted = fit(
        model_folder,
        OBJECTIVES[objective].strategy,
        rollouts=rollouts,
        rewards=REWARDS * 2,
        minibatches_per_rollout=2,
        epochs_per_rollout=2,
        max_grad_norm=None,
        lora=lora,
    )
    # Of moves above 0.01: lean layers round otherwise than the loop's, and lora_alpha / r makes eight times of it.
    assert_weights(fitted.weights, weights_of(expected.model), atol=1e-4)
    learned = fitted.weights
    assert all(torch.equal(learned.get(name, learned.get(_inside(name))), w) for name, w in before.items())
    moved = max(weight.abs().max().item() for name, weight in learned.items() if "lora_B" in name)
    assert moved > 0.01
    assert fitted.module.reference == ()


def _inside(name: str) -> str:
    """Where a weight has gone that an adapter stands beside."""
    layer, _, kind = name.rpartition(".")
    return f"{layer}.base_layer.{kind}"


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
    assert fitted.logged["train/logprob_mismatch"] == pytest.approx(mean, abs=1e-6)
    assert fitted.logged["train/logprob_mismatch_max"] == pytest.approx(0.16, abs=1e-5)


def test_the_lean_engines_logprobs_match_up_to_rounding(model_folder: Path) -> None:
    fitted = prepare(model_folder, OBJECTIVES["GRPO, beta"].strategy, minibatches_per_rollout=2)
    prompts = fitted.engine.rollouts
    fitted.module.engine = LeanEngine(fitted.module.policy, [0], 0)
    fitted.trainer.fit(fitted.module, Prompts(prompts))
    assert 0 < fitted.logged["train/logprob_mismatch"] < 1e-6
    assert fitted.logged["train/logprob_mismatch"] < fitted.logged["train/logprob_mismatch_max"] < 1e-5


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
    assert fitted.module.learning_rate == pytest.approx(0.05 / 4), "what the last step used is what is logged"
    assert fitted.trainer.global_step == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"importance_cap": 0.5}, r"model\.importance_cap is 0\.5; it must be at least 1, or null"),
        ({"lr_schedule": LRSchedule(), "lr_scheduler": lambda _: None}, r"both set the learning rate; leave one out"),
        ({"importance_cap": 2.0, "old_logprobs": "sampled"}, r"model\.importance_cap .* set one or the other"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GroupPolicyModule("embedded", GSPO(), **settings)  # type: ignore[arg-type]


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


def test_bfloat16_weights_leave_the_rotary_frequencies_in_float32(model_folder: Path) -> None:
    """In the policy and in the reference alike: rounded, a position of 300 is up to 0.35 rad off."""
    exact = fit(model_folder, OBJECTIVES["GRPO, beta"].strategy, minibatches_per_rollout=1)
    half = fit(model_folder, OBJECTIVES["GRPO, beta"].strategy, minibatches_per_rollout=1, precision="bf16-true")
    for policy in (half.module.policy, *half.module.reference):
        assert policy.dtype == torch.bfloat16
        assert torch.equal(policy.model.rotary_emb.inv_freq, exact.module.policy.model.rotary_emb.inv_freq)
        assert policy.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_module_stays_where_it_is_between_fit_validate_and_test(model_folder: Path) -> None:
    """Strategies send it to the CPU after each; on a GPU the engine's captured steps would be of no use any more."""
    module = fit(model_folder, OBJECTIVES["GSPO"].strategy).module
    module.to("meta")
    assert {parameter.device.type for parameter in module.cpu().parameters()} == {"meta"}


# In parts


def test_a_policy_that_the_decoder_does_not_cover_is_not_sharded(tmp_path: Path) -> None:
    policy = make_tiny_policy(tmp_path / "policy", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    check_sharding(DDPStrategy(), policy, adapter=False)
    with pytest.raises(ConfigError) as error:
        check_sharding(ShardedStrategy(), policy, adapter=False)
    assert str(error.value) == (
        f"trainer.strategy is sharded, which model.policy {policy!r} cannot be: the decoder, which reads gathered "
        "weights, does not cover it: it has sliding-window layers. Use ddp"
    )

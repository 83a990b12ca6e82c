"""What is refused before any weight is loaded: settings that would end a run later, or change what it is."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import Strategy

from rlvr_pl.pretrained import empty_policy, load_config, load_tokenizer
from rlvr_pl.rollout import why_not_covered
from rlvr_pl.run.optimizer import check_step
from rlvr_pl.sharding.strategy import ShardedStrategy, check_strategy
from rlvr_pl.types import ConfigError

_MAX_EPOCHS_UNSET = 1000  # what Lightning's trainer takes where it is given no limit


def take_one_epoch(trainer: Trainer) -> None:
    """Have the trainer stop after one epoch, which is the whole run: a second one would do its rollouts again.

    Raises:
        ConfigError: if the trainer was given another limit.
    """
    loop = trainer.fit_loop
    if loop.max_epochs == _MAX_EPOCHS_UNSET and loop.max_steps == -1:
        loop.max_epochs = 1
    elif (loop.max_epochs, loop.max_steps) != (1, -1) and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise ConfigError(
            f"the trainer has max_epochs {loop.max_epochs} and max_steps {loop.max_steps}; the budget is counted "
            "in rollouts: give it max_epochs=1 and no max_steps, and set the data module's max_rollouts"
        )


def check_division(prompts_per_rollout: int, minibatches: int, ranks: int) -> None:
    """Refuse a rollout whose minibatches would not hold whole groups, as many on each rank.

    Raises:
        ConfigError: naming the number that would do.
    """
    parts = minibatches * ranks
    if prompts_per_rollout % parts:
        raise ConfigError(
            f"data.prompts_per_rollout is {prompts_per_rollout}, which is not divisible by "
            f"{minibatches} minibatches (model.minibatches_per_rollout) × {ranks} ranks; make it a multiple of {parts}"
        )


def check_sharding(strategy: Strategy, policy: str, adapter: bool) -> None:
    """Refuse a trainer's strategy that cannot work, or not with this policy.

    Args:
        strategy: the trainer's.
        policy: its name.
        adapter: whether an adapter is what learns.

    Raises:
        ConfigError: naming what works.
    """
    check_strategy(strategy)
    if not isinstance(strategy, ShardedStrategy):
        return
    if adapter:
        raise ConfigError(
            "model.lora: an adapter's policy cannot be sharded; it needs no gradients and no moments of the "
            "weights' size: use trainer.strategy ddp"
        )
    if reason := why_not_covered(empty_policy(policy)):
        raise ConfigError(
            f"trainer.strategy is sharded, which model.policy {policy!r} cannot be: the decoder, which "
            f"reads gathered weights, does not cover it: {reason}. Use ddp"
        )


def check_length(policy: str, longest_prompt: int, completion: int) -> None:
    """Refuse completions for whose last token the policy would have no position.

    Args:
        policy: its name.
        longest_prompt: in tokens.
        completion: the budget of one, in tokens.

    Raises:
        ConfigError: if it has too few, or its configuration cannot be loaded.
    """
    positions = getattr(load_config(policy), "max_position_embeddings", None)
    needed = longest_prompt + completion
    if positions is not None and needed > positions:
        raise ConfigError(
            f"model.max_completion_tokens is {completion}; with the longest prompt of {longest_prompt} tokens that is "
            f"{needed}, more than the {positions} positions of {policy!r}. Lower it, or data.max_prompt_tokens"
        )


def check_vocabulary(policy: str, highest_token: int) -> None:
    """Refuse a tokenizer for whose tokens the policy would have no embedding.

    Args:
        policy: its name.
        highest_token: of all prompts.

    Raises:
        ConfigError: if it has too few, or its configuration or its tokenizer cannot be loaded.
    """
    embedded = load_config(policy).get_text_config().vocab_size
    tokenizer = load_tokenizer(policy)
    highest = max(highest_token, tokenizer.eos_token_id, tokenizer.pad_token_id or 0)  # it may have to embed a pad
    if highest >= embedded:
        raise ConfigError(
            f"model.policy: the tokenizer of {policy!r} makes the token {highest} "
            f"({tokenizer.convert_ids_to_tokens(highest)!r}), beyond the model's embedding of {embedded} tokens. "
            "Give it the tokenizer that it was trained with, or resize and save it (resize_token_embeddings)"
        )


def check_factories(optimizer: OptimizerCallable, scheduler: LRSchedulerCallable | None) -> None:
    """Refuse an optimizer or a schedule that cannot be made, with a parameter that is not the policy's.

    Raises:
        ConfigError: with what it says is wrong.
    """
    key = "model.optimizer"
    try:
        weight = torch.nn.Parameter(torch.ones(2, 2))
        made = optimizer([weight])
        check_step(made, weight)
        key = "model.lr_scheduler"
        if scheduler is not None and isinstance(scheduler(made), torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError("ReduceLROnPlateau waits for a metric, which no optimizer step has")
    except ConfigError:
        raise
    except Exception as error:  # whatever a stranger's optimizer stumbles over
        raise ConfigError(f"{key}: {' '.join(str(error).split())}") from error

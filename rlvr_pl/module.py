"""The training loop's inside: rollout → reward → advantage → update, and the evaluation.

One training step, and who does what in it::

    PromptBatch            data/         B questions as prompts, in an order that is a function of the seed
        │ generate         rollout/      G completions a prompt, by the policy as it is
    Rollout                types.py      N = B · G completions with their log-probabilities
        │ reward           rewards/      text, extracted answers, a weighted sum of reward functions
    Rewards                rewards/      total (N,)
        │ advantages       losses/       what a completion earned beyond its group
    advantages (B, G)
        │ update           update.py     minibatches, π_old and π_ref, losses; here: backward, clipping, stepping, ranks
    UpdateStats            update.py     ratios, clip fractions, KL, entropy, gradient norms
        │ finish_step      here          counters, loggers, progress bar
"""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from rlvr_pl.evaluation import EvaluationMetrics, Grade, grade
from rlvr_pl.lora import (
    BASE,
    LoRA,
    WithoutAdapter,
    adapter_shapes,
    add_adapter,
    check_same_adapter,
    check_same_base,
    is_of_adapter,
    merged_weights,
)
from rlvr_pl.losses import LossStrategy
from rlvr_pl.preflight import check_division, check_sharding, take_one_epoch
from rlvr_pl.pretrained import (
    checkpoint_activations,
    constants_kept,
    find_model,
    fingerprint,
    load_config,
    load_policy,
    load_tokenizer,
    save_policy,
    stop_token_ids,
    tensor_shapes,
)
from rlvr_pl.randomness import evaluation_noise, rollout_noise, seed_or_global
from rlvr_pl.ranks import gather_over_ranks
from rlvr_pl.rewards import Completion, Rewards, RewardSum, RewardTerm, correctness, tag_format
from rlvr_pl.rollout import RolloutEngine, Sampling, choose_engine
from rlvr_pl.run.checkpoint_files import VERIFIER, check_architecture
from rlvr_pl.run.environment import is_first_rank
from rlvr_pl.run.optimizer import OPTIMIZER_SETTINGS, OptimizerSettings, overflows
from rlvr_pl.run.place import run_folder
from rlvr_pl.run.records import UNGRADED, EvaluationRecord, PredictionRecord, gold_of, records_path, write_records
from rlvr_pl.schedule import LRSchedule
from rlvr_pl.scoring import Layout, Scored, choose_layout, use_lean_layers
from rlvr_pl.sharding.weights import cut_like, gather, is_sharded, shard, whole
from rlvr_pl.types import ConfigError, Diverged, PromptBatch, Question, Rollout, check_at_least, check_finite
from rlvr_pl.update import OldPolicy, Update, UpdateStats, cut_into_minibatches
from rlvr_pl.verifiers import Number, Verifier

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
StepPart = Callable[Concatenate["GroupPolicyModule", Arguments], Result]


def timed(part: str) -> Callable[[StepPart[Arguments, Result]], StepPart[Arguments, Result]]:
    """Have a part of the training step note how long it took, in seconds: ``wall/{part}_s``.

    A subclass that replaces such a part decorates it likewise.
    """

    def decorate(method: StepPart[Arguments, Result]) -> StepPart[Arguments, Result]:
        @wraps(method)
        def note(module: GroupPolicyModule, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            start = time.perf_counter()
            result = method(module, *args, **kwargs)
            module.seconds[part] = time.perf_counter() - start
            return result

        return note

    return decorate


class GroupPolicyModule(LightningModule):
    """A language model trained by a group-policy objective on verifiable rewards.

    One training step is one whole rollout and all its updates, so a checkpoint always falls between rollouts.

    Args:
        policy: ``embedded``, a model folder, or a hub id such as ``Qwen/Qwen2.5-1.5B-Instruct``.
        loss: the objective: GRPO, DrGRPO, GSPO, GSPOToken or a class of your own. The command line's default is GSPO.
        rewards: reward functions and their weights; the published pair, correctness and tag_format, by default.
        reward_timeout_s: seconds that one call of a reward function may take before the run ends; null waits.
        optimizer: from parameters to an optimizer.
        lr_scheduler: from the optimizer to a scheduler, stepped once an optimizer step.
        lr_schedule: a warm-up and a decay over the whole run, in place of lr_scheduler, such as
            {warmup: 0.05, decay: cosine}.
        group_size: G, completions per prompt.
        max_completion_tokens: the budget of a completion, in training and in evaluation.
        temperature: of the rollouts, and of the log-probabilities that are compared.
        minibatches_per_rollout: optimizer steps per pass over a rollout. With one step a rollout the ratio is always 1,
            and GRPO and GSPO are the same algorithm.
        epochs_per_rollout: passes over a rollout.
        rollout_slots: completions that are generated at a time. Others wait, and take the places of those that end; the
            cache of keys and values grows with it.
        old_logprobs: where π_old comes from. ``rescored``: the policy scores all minibatches but the first before the
            first optimizer step, so that an unchanged policy's ratio is exactly 1. ``sampled``: the sampler's own
            log-probabilities, for which nothing is computed twice; they are rounded otherwise, which a narrow clip band
            such as GSPO's feels in half precision.
        importance_cap: where π_old is rescored, weigh each token's policy loss by π_old / π_sampled up to this cap
            (truncated importance sampling); null weighs all alike.
        release_rollout_memory: give back the memory of generating, the cache of keys and values above all, before each
            update; the next rollout takes it anew and, on a GPU, captures its decode steps again.
        micro_batch_tokens: tokens that go through the policy together in an update, at most; each prompt counts once,
            and there are no pads, but where the policy does not allow it.
        max_grad_norm: gradients are scaled down to this norm; null leaves them alone.
        gradient_checkpointing: compute activations again in the backward pass rather than keep them.
        eval_temperature: 0 evaluates greedily.
        eval_samples: n, completions per question in evaluation; above 1 avg@n, pass@k and maj@n are logged too.
        seed: of the sampling noise, and of an adapter's first weights; null takes that of ``seed_everything``, and 0
            where it was not called.
        lora: train low-rank adapters beside the policy's weights, which stay as they are; null trains the weights.
    """

    def __init__(
        self,
        policy: str,
        loss: LossStrategy,
        rewards: list[RewardTerm] | None = None,
        reward_timeout_s: float | None = None,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_schedule: LRSchedule | None = None,
        group_size: int = 8,
        max_completion_tokens: int = 512,
        temperature: float = 1.0,
        minibatches_per_rollout: int = 4,
        epochs_per_rollout: int = 1,
        old_logprobs: Literal["rescored", "sampled"] = "rescored",
        importance_cap: float | None = None,
        rollout_slots: int = 256,
        release_rollout_memory: bool = False,
        micro_batch_tokens: int = 16384,
        max_grad_norm: float | None = 1.0,
        gradient_checkpointing: bool = False,
        eval_temperature: float = 0.0,
        eval_samples: int = 1,
        seed: int | None = None,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__()
        seed = seed_or_global(seed)  # before the hyperparameters are saved: a checkpoint holds the number
        find_model(policy)
        if lora is not None:
            lora.check()
        check_at_least(
            1,
            "model",
            max_completion_tokens=max_completion_tokens,
            minibatches_per_rollout=minibatches_per_rollout,
            epochs_per_rollout=epochs_per_rollout,
            rollout_slots=rollout_slots,
            micro_batch_tokens=micro_batch_tokens,
            eval_samples=eval_samples,
        )
        check_at_least(0, "model", seed=seed)
        if group_size < 2:
            raise ConfigError(
                f"model.group_size is {group_size}; a group-relative advantage needs at least 2 completions per prompt"
            )
        check_finite(
            "model",
            temperature=temperature,
            eval_temperature=eval_temperature,
            reward_timeout_s=reward_timeout_s,
            max_grad_norm=max_grad_norm,
            importance_cap=importance_cap,
        )
        if temperature <= 0:
            raise ConfigError(f"model.temperature is {temperature}; rollouts need a temperature above 0")
        if eval_temperature < 0:
            raise ConfigError(f"model.eval_temperature is {eval_temperature}; it must be at least 0 (greedy)")
        if eval_samples > 1 and eval_temperature == 0:
            raise ConfigError("model.eval_samples is above 1, but greedy samples are identical; set eval_temperature")
        if lr_schedule is not None:
            lr_schedule.check()
            if lr_scheduler is not None:
                raise ConfigError("model.lr_schedule and model.lr_scheduler both set the learning rate; leave one out")
        if reward_timeout_s is not None and reward_timeout_s <= 0:
            raise ConfigError(f"model.reward_timeout_s is {reward_timeout_s}; it must be above 0, or null for no limit")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ConfigError(f"model.max_grad_norm is {max_grad_norm}; it must be above 0, or null for no clipping")
        if importance_cap is not None and importance_cap < 1:
            raise ConfigError(
                f"model.importance_cap is {importance_cap}; it must be at least 1, or null for no weights"
            )
        if importance_cap is not None and old_logprobs == "sampled":
            raise ConfigError(
                "model.importance_cap weighs tokens by π_old / π_sampled, which are the same with model.old_logprobs: "
                "sampled; set one or the other"
            )
        # Objects stay out of the checkpoint: it must load with weights_only.
        self.save_hyperparameters(ignore=["loss", "rewards", "optimizer", "lr_scheduler", "lr_schedule", "lora"])
        self.save_hyperparameters({"objective": type(loss).__name__, "beta": loss.beta})
        self.automatic_optimization = False
        self.policy_name = policy
        self.lora = lora
        self.loss = loss
        terms = [RewardTerm(correctness), RewardTerm(tag_format)] if rewards is None else rewards
        self.reward_sum = RewardSum(terms, reward_timeout_s)
        self.optimizer_factory = optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.lr_schedule = lr_schedule
        self.group_size = group_size
        self.sampling = Sampling(max_completion_tokens, temperature)
        self.eval_sampling = Sampling(max_completion_tokens, eval_temperature)
        self.minibatches_per_rollout = minibatches_per_rollout
        self.epochs_per_rollout = epochs_per_rollout
        self.old_policy = OldPolicy(sampled=old_logprobs == "sampled", importance_cap=importance_cap)
        self.rollout_slots = rollout_slots
        self.release_rollout_memory = release_rollout_memory
        self.micro_batch_tokens = micro_batch_tokens
        self.max_grad_norm = max_grad_norm
        self.gradient_checkpointing = gradient_checkpointing
        self.eval_samples = eval_samples
        self.seed = seed

        self.policy: PreTrainedModel
        self.base_fingerprint: str | None = None  # of the weights beside an adapter, once they have been loaded
        self.reference: tuple[PreTrainedModel, ...] = ()  # in a tuple: no part of the module, nor of its checkpoints;
        # empty with an adapter, without which the policy is the reference
        self.rollouts_done = 0
        self.completion_tokens = 0  # generated for training so far, over all ranks
        self.learning_rate = math.nan  # of the latest optimizer step
        self._earlier_settings: OptimizerSettings | None = None  # of the checkpoint that the run goes on from
        self.seconds: dict[str, float] = {}  # of the latest training step, by its parts
        self.evaluation_metrics = EvaluationMetrics(eval_samples)
        self.evaluation_records: list[dict[str, Any]] = []

    # Set-up

    def setup(self, stage: str) -> None:
        """Refuse what cannot run, before any weight is loaded."""
        check_sharding(self.trainer.strategy, self.policy_name, adapter=self.lora is not None)
        if stage != "fit":
            return
        take_one_epoch(self.trainer)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None:
            check_division(data.prompts_per_rollout, self.minibatches_per_rollout, self.trainer.world_size)

    def configure_model(self) -> None:
        """Load the policy, once."""
        if hasattr(self, "policy"):
            return
        config = load_config(self.policy_name)
        self.tokenizer = load_tokenizer(self.policy_name)
        self.policy = load_policy(self.policy_name, config).train()
        use_lean_layers(self.policy)  # before the first rollout: its completions may be generated by these layers too
        if self.lora is not None:
            self.base_fingerprint = self.base_fingerprint or fingerprint(self.policy)
            add_adapter(self.policy, self.lora, self.seed)
        if self.gradient_checkpointing:
            checkpoint_activations(self.policy)
        if self.loss.needs_reference and self.lora is None:
            self.reference = (copy.deepcopy(self.policy).eval().requires_grad_(False),)
        if self._device_mesh is not None:
            for policy in (self.policy, *self.reference):
                shard(policy, self._device_mesh["data_parallel"])
        self.stop_ids = stop_token_ids(self.policy, self.tokenizer)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the module, as ``.to()`` does; under bf16-true Lightning converts all of it to bfloat16."""
        with constants_kept(self):
            return super()._apply(fn, recurse)

    def cpu(self) -> Self:
        """Stay on the device: strategies ask for this after each of fit, validate and test.

        A GPU would get all weights back a moment later, and the rollout engine would capture its decode steps anew.
        ``.to("cpu")`` moves the module.
        """
        return self

    @cached_property
    def engine(self) -> RolloutEngine:
        """The rollout engine, chosen at its first use: until then a subclass may wrap layers of the loaded policy."""
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.stop_ids[0] if pad_id is None else pad_id
        return choose_engine(self.policy, self.stop_ids, pad_id, self.rollout_slots)

    @cached_property
    def layout(self) -> Layout:
        """How sequences are laid out for an update, chosen at the first one: policies are on their device by then."""
        return choose_layout(self.policy, *self.reference)

    @property
    def referees(self) -> Sequence[Scored]:
        """What scores as the reference policy: none, the initial policy's copy, or the policy without its adapter."""
        return [WithoutAdapter(self.policy)] if self.loss.needs_reference and self.lora is not None else self.reference

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory(
            parameter for parameter in self.policy.parameters() if parameter.requires_grad
        )
        scheduler = self._make_scheduler(optimizer)
        self.optimizer_settings = OptimizerSettings.of(optimizer, scheduler)
        return optimizer if scheduler is None else ([optimizer], [scheduler])

    def _make_scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        if self.lr_schedule is not None:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            rollouts = self.trainer.estimated_stepping_batches if data is None else data.max_rollouts
            steps = int(rollouts) * self.minibatches_per_rollout * self.epochs_per_rollout
            return self.lr_schedule.scheduler(optimizer, steps)
        return None if self.lr_scheduler_factory is None else self.lr_scheduler_factory(optimizer)

    def on_fit_start(self) -> None:
        for reference in self.reference:
            with constants_kept(reference):
                reference.to(self.device, self.policy.dtype)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: PromptBatch, device: torch.device, dataloader_idx: int) -> PromptBatch:
        """Leave the batch as it is: prompts are lists, and the engine makes its tensors where it wants them."""
        return batch

    # Training

    def on_train_start(self) -> None:
        """Let the configuration's optimizer and schedule settings act on what a checkpoint has restored."""
        if self._earlier_settings is not None:
            configs = self.trainer.lr_scheduler_configs
            scheduler = configs[0].scheduler if configs else None
            self.optimizer_settings.act_on(
                self.trainer.optimizers[0], scheduler, self._earlier_settings, self.trainer.global_step
            )
            self._earlier_settings = None

    def training_step(self, prompts: PromptBatch, batch_idx: int) -> dict[str, Any]:
        """Learn from one rollout; what is returned is for callbacks."""
        rollout = self.generate(prompts)  # a group of completions per prompt, in the loop
        rewards = self.reward(rollout, prompts)  # verifiable: extraction and exact arithmetic
        advantages = self.loss.advantages(rollout.by_group(rewards.total))  # the objective's own
        update = self.update(rollout, advantages)  # minibatches × epochs, manual optimization
        self.finish_step(prompts, rewards, update)
        return {"rollout": rollout, "rewards": rewards}

    @timed("rollout")
    def generate(self, prompts: PromptBatch) -> Rollout:
        """Sample a group of completions for each prompt."""
        tokens = self.sampling.max_completion_tokens
        noise = rollout_noise(self.seed, prompts.rollout, prompts.indices, self.group_size, tokens)
        prompt_ids = [q.prompt_ids for q in prompts.questions]
        self.gather_weights()
        rollout = self.engine.generate(prompt_ids, self.group_size, self.sampling, noise)
        if self.release_rollout_memory:
            self.engine.release()
        return rollout

    def gather_weights(self) -> None:
        """Have the engine hold all of a sharded policy's present weights: a collective, so that every rank must ask."""
        if is_sharded(self.policy):
            with self.trainer.precision_plugin.forward_context():  # by which it knows what they are rounded to
                self.engine.gather()

    @timed("reward")
    def reward(self, rollout: Rollout, prompts: PromptBatch) -> Rewards:
        """Score the completions of a rollout, (N,)."""
        return self.reward_sum(self.read(rollout, prompts))

    def read(self, rollout: Rollout, prompts: PromptBatch) -> list[Completion]:
        """Decode the completions, N of them, each with its question."""
        lengths = rollout.lengths.tolist()
        ids = [row[:length] for row, length in zip(rollout.completion_ids.tolist(), lengths, strict=True)]
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        questions, truncated = rollout.by_row(prompts.questions), rollout.truncated.tolist()
        verifier = self.verifier
        return [
            Completion(
                text=text,
                question=question.question,
                gold=question.gold or "",
                tokens=length,
                truncated=cut,
                alternatives=question.alternatives,
                verifier=verifier,
                columns=question.columns,
            )
            for text, question, length, cut in zip(texts, questions, lengths, truncated, strict=True)
        ]

    @property
    def verifier(self) -> Verifier:
        """What tells right answers from others: the data module's, which knows what a gold answer means, or numbers."""
        data = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        return getattr(data, "verifier", None) or Number()

    @timed("update")
    def update(self, rollout: Rollout, advantages: Tensor) -> UpdateStats:
        """Learn from a rollout: ``epochs_per_rollout`` passes of ``minibatches_per_rollout`` optimizer steps.

        Args:
            rollout: N sequences.
            advantages: (B, G).
        """
        advantages = advantages.flatten()
        if self.trainer.world_size > 1:
            rollout, advantages = gather_over_ranks(rollout, advantages, self.minibatches_per_rollout)
        minibatches = cut_into_minibatches(
            rollout,
            advantages,
            self.loss,
            self.layout,
            self.minibatches_per_rollout,
            self.micro_batch_tokens,
            self.sampling.max_completion_tokens,
            rank=self.trainer.global_rank,
            ranks=self.trainer.world_size,
        )
        update = Update(
            minibatches,
            self.loss,
            self.policy,
            self.referees,
            self.sampling.temperature,
            device=self.device,
            old_policy=self.old_policy,
        )
        for _ in range(self.epochs_per_rollout):
            for minibatch in minibatches:
                numerators, count = update.losses(minibatch), len(minibatch.micro_batches)
                update.stats.add_step(self.optimizer_step_on(numerators, count, minibatch.denominator))
        cast(LightningOptimizer, self.optimizers()).zero_grad()  # the next rollout needs the memory more
        return update.stats.over_ranks(self._reduce)

    def optimizer_step_on(self, numerators: Iterable[Tensor], count: int, denominator: Tensor) -> float:
        """Take one optimizer step on the gradient of Σ ``numerators`` / ``denominator``, both over all ranks.

        Args:
            numerators: of the micro-batches' losses; each is asked for once the one before it has been used.
            count: how many there are.
            denominator: scalar, over all ranks.

        Returns:
            The gradient's norm before clipping.

        Raises:
            Diverged: if the gradient is not finite; the weights are then as they were. Or if the learning rate is more
                than a number of the optimizer's can be.
        """
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        for i, numerator in enumerate(numerators):
            with self._gradient_sync(last=i == count - 1):
                # The strategy averages gradients over ranks; the denominator already counts them all.
                self.manual_backward(numerator * self.trainer.world_size / denominator)
        limit = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        grad_norm = float(whole(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), limit)))
        if not math.isfinite(grad_norm):
            raise Diverged(f"the gradient of rollout {self.rollouts_done + 1} is not finite (norm {grad_norm})")
        self.learning_rate = optimizer.param_groups[0]["lr"]  # before the scheduler sets that of the next step
        try:
            optimizer.step()
        except RuntimeError as error:
            if not overflows(error):
                raise
            raise Diverged(
                f"an optimizer step of rollout {self.rollouts_done + 1} overflows at a learning rate of "
                f"{self.learning_rate:g}"
            ) from error
        if (scheduler := self.lr_schedulers()) is not None:
            scheduler.step()  # type: ignore[union-attr]
        return grad_norm

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        """Have ranks exchange gradients once an optimizer step, with the last micro-batch."""
        block = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        return nullcontext() if last else block()

    def _reduce(self, value: Tensor, operation: str) -> Tensor:
        """Reduce a tensor over all ranks, into a new one: strategies may work in place."""
        return self.trainer.strategy.reduce(value.to(self.device, copy=True), reduce_op=operation)

    # Evaluation

    def validation_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        self.evaluate(prompts)

    def test_step(self, prompts: PromptBatch, batch_idx: int) -> None:
        self.evaluate(prompts)

    def predict_step(self, prompts: PromptBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Answer a batch, and grade what has gold answers; ``trainer.predict`` returns its records."""
        records = [
            asdict(
                PredictionRecord(
                    question=question.index,
                    question_text=question.question,
                    sample=sample,
                    **(asdict(graded) | ({} if question.gold is not None else UNGRADED)),
                    gold=None if question.gold is None else gold_of(completion.golds),
                    completion=completion.text,
                )
            )
            for question, sample, completion, graded in self._graded(prompts)
        ]
        self.evaluation_records += records
        return records

    def answer(self, prompts: PromptBatch) -> Rollout:
        """Sample completions as an evaluation does, ``eval_samples`` a question."""
        noise = None
        if self.eval_sampling.temperature > 0:
            tokens = self.eval_sampling.max_completion_tokens
            noise = evaluation_noise(self.seed, prompts.indices, self.eval_samples, tokens)
        prompt_ids = [q.prompt_ids for q in prompts.questions]
        return self.engine.generate(prompt_ids, self.eval_samples, self.eval_sampling, noise)

    def evaluate(self, prompts: PromptBatch) -> None:
        """Answer and grade a batch of questions."""
        answers = self._graded(prompts)
        self.evaluation_metrics.update([graded for *_, graded in answers], self.verifier)
        for question, sample, completion, graded in answers:
            record = EvaluationRecord(
                question=question.index,
                sample=sample,
                gold=gold_of(completion.golds),
                **asdict(graded),
                completion=completion.text,
                cluster=question.cluster,
            )
            self.evaluation_records.append(asdict(record))

    def _graded(self, prompts: PromptBatch) -> list[tuple[Question, int, Completion, Grade]]:
        """Answer a batch: each question with the number of its sample, that completion, and its grade."""
        rollout = self.answer(prompts)
        rows = zip(rollout.by_row(prompts.questions), self.read(rollout, prompts), strict=True)
        return [
            (question, rollout.place(row)[1], completion, grade(completion))
            for row, (question, completion) in enumerate(rows)
        ]

    def on_validation_epoch_start(self) -> None:
        self.evaluation_metrics.reset()
        self.evaluation_records = []
        self.gather_weights()

    on_test_epoch_start = on_validation_epoch_start
    on_predict_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self.finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        self.finish_evaluation("test")

    def on_predict_epoch_end(self) -> None:
        self.write_evaluation_records("predict")

    def finish_evaluation(self, stage: str) -> None:
        """Log the metrics and write the records, both over all ranks."""
        values = {f"{stage}/{name}": float(value) for name, value in self.evaluation_metrics.compute().items()}
        self.log_values(values, progress_bar=(f"{stage}/accuracy",))
        self.write_evaluation_records(stage)

    def write_evaluation_records(self, stage: str) -> None:
        """Write the records of all ranks next to the logs."""
        records = self.evaluation_records
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, records)
            records = [record for part in gathered for record in part]
        folder = run_folder(self.trainer)
        if self.trainer.is_global_zero and folder is not None:
            write_records(records_path(folder, stage, self.rollouts_done), records)

    # Logs and checkpoints

    def finish_step(self, prompts: PromptBatch, rewards: Rewards, stats: UpdateStats) -> None:
        """Count one training step and log it; values per sequence are means over all ranks' sequences."""
        self.rollouts_done = prompts.rollout + 1
        completions = rewards.completions
        columns = {
            "reward": rewards.total,
            **{f"reward/{name}": part for name, part in rewards.parts.items()},
            "accuracy": torch.tensor([grade(c).correct for c in completions]),
            "tokens_mean": torch.tensor([c.tokens for c in completions]),
            "truncated_rate": torch.tensor([c.truncated for c in completions]),
        }
        table = torch.stack([c.double() for c in columns.values()], dim=1)  # (N, columns)
        if self.trainer.world_size > 1:
            table = cast(Tensor, self.all_gather(table.to(self.device))).reshape(-1, len(columns)).cpu()
        groups = table[:, 0].view(-1, self.group_size)
        means = dict(zip(columns, table.mean(dim=0).tolist(), strict=True))
        tokens = round(means["tokens_mean"] * len(table))
        self.completion_tokens += tokens
        diagnostics = stats.means()
        mismatch_mean, mismatch_max = stats.logprob_mismatch()
        if not self.loss.needs_reference:
            del diagnostics["kl_ref"]
        values = {
            **{f"train/{name}": value for name, value in (means | diagnostics).items()},
            "train/reward_std": float(groups.std(dim=1).mean()),
            "train/zero_variance_groups": float((groups.amax(dim=1) == groups.amin(dim=1)).double().mean()),
            "train/lr": self.learning_rate,
            "train/epoch": float(prompts.epoch),
            "train/logprob_mismatch": mismatch_mean,
            "train/logprob_mismatch_max": mismatch_max,
            **{f"wall/{part}_s": seconds for part, seconds in self.seconds.items()},
            "wall/tokens_per_s": tokens / sum(self.seconds.values()),
        }
        self.log_values(values, progress_bar=("train/reward", "train/accuracy"))

    def log_values(self, values: dict[str, float], progress_bar: Sequence[str] = ()) -> None:
        """Write values to the loggers over the count of rollouts, and offer them to callbacks and the progress bar.

        They go to the loggers at once, not when Lightning gets to it, so that a checkpoint never outruns its log.
        """
        for logger in self.loggers:
            logger.log_metrics(values, step=self.rollouts_done)
        for name, value in values.items():
            self.log(name, value, logger=False, prog_bar=name in progress_bar, batch_size=1, rank_zero_only=False)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return what a checkpoint holds: with an adapter, nothing else, for the rest is as it was loaded."""
        state = super().state_dict(*args, **kwargs)
        return state if self.lora is None else {key: tensor for key, tensor in state.items() if is_of_adapter(key)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take what :meth:`state_dict` returned.

        Raises:
            ConfigError: if it was written with another adapter, or with none.
        """
        own = self.state_dict()
        check_same_adapter(state_dict, {name: tensor.shape for name, tensor in own.items()})
        parts = {name: cut_like(tensor, own[name]) if name in own else tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(parts, strict=strict and self.lora is None, assign=assign)

    def checkpoint_shapes(self) -> dict[str, torch.Size]:
        """List the tensors that a checkpoint holds, by name, without loading a weight."""
        if self.lora is None:
            shapes = tensor_shapes(self.policy_name)
        else:
            shapes = adapter_shapes(self.lora, load_config(self.policy_name))
        return {f"policy.{name}": shape for name, shape in shapes.items()}

    def check_tensors(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Refuse a checkpoint whose tensors are not those of this policy, or of its adapter; no weight is loaded.

        Args:
            checkpoint: as ``read_checkpoint`` gives it.
            path: its file.

        Raises:
            ConfigError: naming what differs.
        """
        shapes = self.checkpoint_shapes()
        check_same_adapter(checkpoint["state_dict"], shapes)
        check_architecture(checkpoint, shapes, path, self.policy_name)

    def check_base(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of an adapter that stood beside other weights; to know, the policy is loaded.

        Raises:
            ConfigError: naming both policies.
        """
        if self.lora is None or BASE not in checkpoint:
            return
        if self.base_fingerprint is None:
            self.base_fingerprint = fingerprint(load_policy(self.policy_name, load_config(self.policy_name)))
        check_same_base(checkpoint, self.base_fingerprint, self.policy_name)

    def exported_weights(self) -> dict[str, Any]:
        """Collect the policy's weights on the host, an adapter merged in.

        Of a sharded policy every rank must ask, and the first one gets them.
        """
        if self.lora is not None:
            return merged_weights(self.policy) if is_first_rank() else {}
        return gather(dict(self.policy.state_dict(keep_vars=True)), keep=is_first_rank())

    def export(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Save the policy as a model folder with its tokenizer.

        Args:
            folder: is made.
            weights: what :meth:`exported_weights` has returned; None asks for them.
        """
        self.tokenizer.save_pretrained(folder)
        save_policy(self.policy, self.exported_weights() if weights is None else weights, folder)

    def export_adapter(self, folder: Path) -> None:
        """Save the adapter by itself, in peft's format."""
        self.policy.save_pretrained(folder)

    @_restricted_classmethod  # Lightning's, which refuses to be called on an instance
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Make a module with the settings and the weights of a checkpoint.

        Objects are no part of a checkpoint: the objective has to be named again, and with LoRA ``lora``. Rewards,
        optimizer and schedule are the defaults where they are not named.

        Raises:
            ConfigError: if the objective or the adapter is not named.
        """
        if "loss" not in kwargs and "loss" in inspect.signature(cls).parameters:
            raise ConfigError(
                "load_from_checkpoint: a checkpoint holds no objective; name it again: "
                f"{cls.__name__}.load_from_checkpoint({str(checkpoint_path)!r}, loss=GSPO())"
            )
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rollouts_done"] = self.rollouts_done
        checkpoint["completion_tokens"] = self.completion_tokens
        checkpoint[VERIFIER] = self.verifier.name
        checkpoint[OPTIMIZER_SETTINGS] = self.optimizer_settings.as_written()
        if self.lora is not None:
            checkpoint[BASE] = self.base_fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_base(checkpoint)
        self.rollouts_done = checkpoint["rollouts_done"]
        self.completion_tokens = checkpoint["completion_tokens"]
        self._earlier_settings = OptimizerSettings.read(checkpoint.get(OPTIMIZER_SETTINGS))
        # A finished run stays finished for Lightning, whatever its budget is now; the loader knows better.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

"""Time a training step against TRL's: ``pip install -r benchmarks/requirements.txt``, ``python benchmarks/step.py``.

Both get the same policy, prompts, completions and rewards, and take turns, round by round, in one process. Completions
are replayed, so that both learn from the same tokens; the optimizer is AdamW, the objective GRPO. TRL runs as it comes
(activation checkpointing) and tuned (without; its GRPO trainer has no padding-free mode; the largest micro-batch that
is whole, or half of it, whichever is faster).

"update" is all of a step but generation and rewards. "floor" is the time of the matrix products of the distinct tokens
(each prompt once, no pads; a forward pass of minibatches that are scored twice counts) at the rate that products of
just these shapes reach in the same round. "step" adds each one's own generation of as many tokens.

    --quick           the smallest case, two rounds
    --cases TEXT      only cases whose name contains it
    --rounds N        of each case
    --no-generation   updates only
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it runs from a checkout
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from policies import qwen2_shape, random_policy

from rlvr_pl.losses import GRPO
from rlvr_pl.pretrained import load_config, load_policy, load_tokenizer
from rlvr_pl.rollout import LeanEngine, Sampling
from rlvr_pl.scoring import choose_layout, use_lean_layers
from rlvr_pl.types import Rollout
from rlvr_pl.update import OldPolicy, Update, cut_into_minibatches

BUDGET = 128
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Case:
    name: str
    policy: Callable[[], PreTrainedModel]
    prompts: int
    group: int
    prompt_tokens: int = 150
    realistic: bool = False  # lengths between 12 and the budget, most of them short; else all of the budget
    minibatches: int = 1
    beta: float = 0.0
    no_variance: float = 0.0  # share of groups


def qwen2_26m(vocabulary: int) -> PreTrainedModel:
    return random_policy(qwen2_shape(vocabulary, hidden=512, intermediate=1728, layers=8, heads=8, positions=1024))


def embedded() -> PreTrainedModel:
    return load_policy("embedded", load_config("embedded"))


def medium() -> PreTrainedModel:
    return qwen2_26m(4096)


CASES = [
    Case("embedded 16×16 fixed", embedded, 16, 16, prompt_tokens=75),
    Case("embedded 16×16 realistic", embedded, 16, 16, prompt_tokens=75, realistic=True),
    Case("embedded 16×16 realistic, 4 minibatches", embedded, 16, 16, 75, realistic=True, minibatches=4),
    Case("26M 4×8 fixed", medium, 4, 8),
    Case("26M 4×8 realistic", medium, 4, 8, realistic=True),
    Case("26M 4×8 fixed, prompts of 75", medium, 4, 8, prompt_tokens=75),
    Case("26M 4×8 fixed, prompts of 400", medium, 4, 8, prompt_tokens=400),
    Case("26M 4×8 fixed, half without variance", medium, 4, 8, no_variance=0.5),
    Case("26M 4×8 fixed, β 0.04", medium, 4, 8, beta=0.04),
    Case("26M 4×8 fixed, 4 minibatches", medium, 4, 8, minibatches=4),
    Case("26M × 151,936 4×8 fixed", lambda: qwen2_26m(151936), 4, 8),
]


@dataclass(frozen=True)
class Replay:
    """What both learn from."""

    prompts: list[list[int]]
    completions: list[list[int]]  # N
    rewards: list[float]  # N

    def rollout(self, policy: PreTrainedModel, group: int) -> Rollout:
        lengths = torch.tensor([len(completion) for completion in self.completions])
        mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.tensor([token for completion in self.completions for token in completion])
        zeros = torch.zeros(mask.shape)
        return Rollout(self.prompts, group, ids, mask, zeros, torch.zeros(len(lengths), dtype=torch.bool))


def replay_of(case: Case, vocabulary: int) -> Replay:
    generator = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(5, min(vocabulary, 400)) for _ in range(count)]

    def length() -> int:
        return min(BUDGET, max(12, int(generator.lognormvariate(3.7, 0.5)))) if case.realistic else BUDGET

    rewards = []
    for prompt in range(case.prompts):
        varied = prompt >= case.no_variance * case.prompts
        rewards += [generator.random() if varied else 0.5 for _ in range(case.group)]
    count = case.prompts * case.group
    return Replay(
        [tokens(case.prompt_tokens) for _ in range(case.prompts)], [tokens(length()) for _ in range(count)], rewards
    )


class Ours:
    name = "rlvr_pl"

    def __init__(self, case: Case, replay: Replay) -> None:
        self.case, self.replay = case, replay
        self.policy = case.policy().train()
        self.references = [case.policy().eval().requires_grad_(False)] if case.beta else []
        for policy in (self.policy, *self.references):
            use_lean_layers(policy)
        self.loss = GRPO(beta=case.beta)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=LEARNING_RATE, fused=True)
        self.layout = choose_layout(self.policy, *self.references)
        self.rollout = replay.rollout(self.policy, case.group)
        self.engine = LeanEngine(self.policy, (-1,), 0)

    def gradient(self) -> Tensor:
        """Of the whole rollout as one minibatch, before any step."""
        self._update(1, lambda: None)
        return flat_gradient(self.policy)

    def update(self) -> float:
        start = time.perf_counter()
        self._update(self.case.minibatches, self._step)
        return time.perf_counter() - start

    def _step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()

    def _update(self, minibatches: int, step: Callable[[], None]) -> None:
        advantages = self.loss.advantages(torch.tensor(self.replay.rewards).view(-1, self.case.group)).flatten()
        cut = cut_into_minibatches(self.rollout, advantages, self.loss, self.layout, minibatches, 16384, BUDGET)
        update = Update(cut, self.loss, self.policy, self.references, 1.0, torch.device("cpu"), OldPolicy())
        for minibatch in cut:
            self.policy.zero_grad()
            for numerator in update.losses(minibatch):
                (numerator / minibatch.denominator).backward()
            step()

    def generation(self) -> float:
        start = time.perf_counter()
        longest = max(map(len, self.replay.completions))
        noise = torch.rand(len(self.replay.completions), longest)
        self.engine.generate(self.replay.prompts, self.case.group, Sampling(longest, 1.0), noise)
        return time.perf_counter() - start


class TRL:
    """Its trainer, whose dataset, generation and reward are the replay."""

    def __init__(self, case: Case, replay: Replay, micro_batch: int, tuned: bool, folder: Path) -> None:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
        from trl.trainer.utils import add_fused_lm_head

        self.name = f"TRL, tuned, {micro_batch} rows" if tuned else "TRL"
        self.case, self.replay = case, replay
        count = case.prompts * case.group
        accumulation = count // micro_batch // case.minibatches
        arguments = GRPOConfig(
            output_dir=str(folder / self.name),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation * case.minibatches,
            num_generations=case.group,
            max_completion_length=BUDGET,
            loss_type="grpo",
            scale_rewards="group",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_steps=100_000,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            shuffle_dataset=False,
            generation_kwargs={"eos_token_id": [-1]},
            **({"gradient_checkpointing": False} if tuned else {}),
        )
        rewards = replay.rewards

        def rollout_func(prompts: list[Any], trainer: Any) -> dict[str, Any]:
            prompt_ids = [prompt for prompt in replay.prompts for _ in range(case.group)]
            return {"prompt_ids": prompt_ids, "completion_ids": replay.completions, "logprobs": None}

        self.policy = case.policy()
        self.trainer = GRPOTrainer(
            model=self.policy,
            args=arguments,
            reward_funcs=lambda completions, **_: rewards,
            train_dataset=Dataset.from_dict({"prompt": ["a"] * case.prompts}),
            processing_class=load_tokenizer("embedded"),
            rollout_func=rollout_func,
        )
        if case.beta:  # given to the constructor, it would look for the reference by the policy's name
            self.trainer.beta, self.trainer.ref_model = case.beta, case.policy().eval()
            add_fused_lm_head(self.trainer.ref_model, temperature=self.trainer.temperature)
        self.trainer.create_optimizer_and_scheduler(10)
        self.model = self.trainer.model
        self.trainer.current_gradient_accumulation_steps = accumulation
        self.accumulation = accumulation
        self.batch = [{"prompt": "a"} for _ in range(count)]

    def gradient(self) -> Tensor:
        self.model.zero_grad()
        for _ in range(len(self.replay.completions) // self.trainer.args.per_device_train_batch_size):
            self.trainer.training_step(self.model.train(), self.batch, None)
        return flat_gradient(self.model)

    def update(self) -> float:
        start = time.perf_counter()
        for _ in range(self.case.minibatches):
            self.model.zero_grad()
            for _ in range(self.accumulation):
                self.trainer.training_step(self.model.train(), self.batch, None)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.trainer.optimizer.step()
        return time.perf_counter() - start

    def generation(self) -> float:
        prompt_ids = [prompt for prompt in self.replay.prompts for _ in range(self.case.group)]
        self.trainer.generation_config.max_new_tokens = max(map(len, self.replay.completions))
        start = time.perf_counter()
        self.trainer._generate_single_turn(prompt_ids, None, {}, self.case.group)
        return time.perf_counter() - start


def flat_gradient(policy: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def floor(case: Case, replay: Replay, policy: PreTrainedModel) -> float:
    """Seconds of the matrix products of an update, forward and backward, of the distinct tokens."""
    learning = [i for i in range(case.prompts) if case.beta or i >= case.no_variance * case.prompts]
    answers = sum(len(replay.completions[i * case.group + j]) for i in learning for j in range(case.group))
    tokens = answers + len(learning) * case.prompt_tokens
    forwards = 3 + (1 - 1 / case.minibatches) + (1 if case.beta else 0)  # a backward pass is two; π_old, π_ref
    seconds = 0.0
    shapes = [tuple(p.shape) for name, p in policy.named_parameters() if p.ndim == 2 and "layers" in name]
    for rows, (out, inner) in [(tokens, shape) for shape in shapes] + [(answers, tuple(policy.lm_head.weight.shape))]:
        chunk = min(rows, 2**26 // out)
        x, w = torch.randn(chunk, inner), torch.randn(out, inner)
        start = time.perf_counter()
        x @ w.T
        seconds += (time.perf_counter() - start) * rows / chunk * forwards
    return seconds


def run(case: Case, rounds: int, generation: bool, table: Table, folder: Path) -> None:
    ours_policy = case.policy()
    replay = replay_of(case, ours_policy.config.vocab_size)
    count = case.prompts * case.group // case.minibatches
    ours = Ours(case, replay)
    peers = [TRL(case, replay, count, False, folder)]
    peers += [TRL(case, replay, rows, True, folder) for rows in (count, count // 2)]
    if case.minibatches == 1:
        expected, actual = ours.gradient(), peers[0].gradient()
        difference = float((actual - expected).norm() / expected.norm())
        assert difference < 1e-4, f"{case.name}: the gradients differ by {difference:.1e}"
        for peer in peers[1:]:
            peer.gradient()
    updates: dict[str, list[float]] = {engine.name: [] for engine in (ours, *peers)}
    steps: dict[str, list[float]] = {engine.name: [] for engine in (ours, *peers)}
    floors = []
    for _ in range(rounds + 1):
        floors.append(floor(case, replay, ours_policy))
        for engine in (ours, *peers):
            seconds = engine.update()
            updates[engine.name].append(seconds)
            steps[engine.name].append(seconds + (engine.generation() if generation else 0))

    def ratio(of: dict[str, list[float]], names: Sequence[str]) -> str:
        pairs = min(([a / b for a, b in zip(of[n][1:], of[ours.name][1:], strict=True)] for n in names), key=median)
        return f"{median(pairs):.2f} ({min(pairs):.2f}–{max(pairs):.2f})"

    default, tuned = [peers[0].name], [peer.name for peer in peers[1:]]
    of_floor = median(a / b for a, b in zip(updates[ours.name][1:], floors[1:], strict=True))
    row = [
        case.name,
        f"{median(updates[ours.name][1:]):.2f}",
        f"{of_floor:.2f}",
        ratio(updates, default),
        ratio(updates, tuned),
    ]
    table.add_row(*row, *([ratio(steps, default), ratio(steps, tuned)] if generation else ["", ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-generation", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    table = Table("case", "update, s", "× floor", "TRL update ×", "tuned ×", "TRL step ×", "tuned ×")
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES[:2] if arguments.quick else CASES:
            if arguments.cases in case.name:
                rounds = 2 if arguments.quick else arguments.rounds
                run(case, rounds, not arguments.no_generation, table, Path(folder))
                Console(width=150).print(table)


if __name__ == "__main__":
    main()

"""The data module: three splits of one source, as prompts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from lightning.pytorch import LightningDataModule

from rlvr_pl.data.loaders import EvaluationLoader, RolloutLoader
from rlvr_pl.data.prompts import SYSTEM_PROMPT, format_prompt, warn_if_plain
from rlvr_pl.data.questions import BadRows, build_questions, warn_if_alike
from rlvr_pl.data.sources import DataSource, find_source
from rlvr_pl.pretrained import load_tokenizer
from rlvr_pl.randomness import hold_out, seed_or_global
from rlvr_pl.types import ConfigError, Question, check_at_least


class GSM8KDataModule(LightningDataModule):
    """Math word problems in GSM8K's schema.

    Three splits: *train*; *val*, a fixed hold-out of the source's train split that is never trained on and serves to
    choose the best checkpoint; *test*, the source's own test split, which is what gets reported. A source without a
    test split has one held out in the same way.

    Args:
        source: ``openai/gsm8k`` or another hub id; the path of a .jsonl or .parquet file, of a folder with train and
            test files, or of a saved dataset; ``embedded``, generated problems; or a data source of your own.
        tokenizer: the model whose tokenizer and chat template make the prompts; null takes that of the policy which
            the trainer trains.
        system_prompt: what the chat template's system turn says; empty leaves the turn out.
        chat_template: false writes prompts in a plain form, without the tokenizer's chat template.
        prompts_per_rollout: B over all ranks; each gets ``model.group_size`` completions.
        max_rollouts: the training budget.
        val_size: how many train problems are held out for validation.
        eval_batch_size: questions that the rollout engine is given at a time in evaluation, on each rank; how many of
            them it answers at once is ``model.rollout_slots``.
        max_prompt_tokens: rows with a longer prompt are bad rows.
        bad_rows: ``refuse`` stops at rows that cannot be used and names them, ``drop`` leaves them out and says so.
        cluster: a field of the rows that says which questions belong together, such as the passage that they are
            about. Questions of one cluster are no independent evidence, and the report's intervals take them together.
        seed: of the prompt order; null takes that of ``seed_everything``, and 0 where it was not called.
        split_seed: of the hold-out; the same for all runs, so that their validation questions are the same.
    """

    def __init__(
        self,
        source: str | DataSource = "openai/gsm8k",
        tokenizer: str | None = None,
        system_prompt: str = SYSTEM_PROMPT,
        chat_template: bool = True,
        prompts_per_rollout: int = 32,
        max_rollouts: int = 200,
        val_size: int = 256,
        eval_batch_size: int = 4096,
        max_prompt_tokens: int = 512,
        bad_rows: BadRows = "refuse",
        cluster: str | None = None,
        seed: int | None = None,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        seed = seed_or_global(seed)
        check_at_least(
            1,
            "data",
            prompts_per_rollout=prompts_per_rollout,
            max_rollouts=max_rollouts,
            val_size=val_size,
            eval_batch_size=eval_batch_size,
        )
        check_at_least(0, "data", seed=seed, split_seed=split_seed)
        self.source = find_source(source)
        self.tokenizer_name = tokenizer
        self.system_prompt = system_prompt
        self.chat_template = chat_template
        self.prompts_per_rollout = prompts_per_rollout
        self.max_rollouts = max_rollouts
        self.val_size = val_size
        self.eval_batch_size = eval_batch_size
        self.max_prompt_tokens = max_prompt_tokens
        self.bad_rows = bad_rows
        self.cluster = cluster
        self.seed = seed
        self.split_seed = split_seed
        self.questions: dict[str, list[Question]] = {}
        self._encoded_for: str | None = None  # whose tokenizer made the prompts of these questions

    def setup(self, stage: str | None = None) -> None:
        """Load all splits, check and tokenize them, once.

        Raises:
            ConfigError: if the data cannot be used, or it is open whose tokenizer makes the prompts.
        """
        name = self.tokenizer_name or self._name_of_policy()
        if name == self._encoded_for:
            return
        tokenizer = load_tokenizer(name)
        if self.chat_template:
            warn_if_plain(tokenizer)

        def format_question(question: str) -> str:
            return format_prompt(tokenizer, question, self.system_prompt, self.chat_template)

        format_question("1 + 1 = ?")  # a template that fails is said to fail, rather than every row to be bad

        def questions_of(split: str, rows: Iterable[object]) -> list[Question]:
            return build_questions(
                rows, split, tokenizer, format_question, self.max_prompt_tokens, self.bad_rows, self.cluster
            )

        train_rows, test_rows = self.source("train"), self.source("test")
        if train_rows is None:
            raise ConfigError("data.source: it has no train split (a folder needs train.jsonl or train.parquet)")
        train = questions_of("train", train_rows)
        if test_rows is None:
            warnings.warn(
                f"data.source has no test split; {self.val_size} train problems are held out for it", stacklevel=2
            )
            train, test = self._hold_out(train, self.split_seed + 1)
        else:
            test = questions_of("test", test_rows)
        warn_if_alike(test)
        train, val = self._hold_out(train, self.split_seed)
        self.questions = {"train": train, "val": val, "test": test}
        self._encoded_for = name

    def _name_of_policy(self) -> str:
        """Name the policy that the trainer trains."""
        name = None if self.trainer is None else getattr(self.trainer.lightning_module, "policy_name", None)
        if name is None:
            raise ConfigError(
                "data.tokenizer is not given, and there is no policy to take it from: the trainer has no "
                "GroupPolicyModule. Name the policy, as in GSM8KDataModule(tokenizer='Qwen/Qwen2.5-1.5B-Instruct')"
            )
        return str(name)

    def _hold_out(self, questions: list[Question], seed: int) -> tuple[list[Question], list[Question]]:
        """Split off ``val_size`` questions: (kept, held out)."""
        if self.val_size >= len(questions):
            raise ConfigError(
                f"data.val_size is {self.val_size}, but there are only {len(questions)} train problems to hold out from"
            )
        chosen = hold_out(seed, len(questions), self.val_size)
        kept = [q for i, q in enumerate(questions) if i not in chosen]
        return kept, [q for i, q in enumerate(questions) if i in chosen]

    def train_dataloader(self) -> RolloutLoader:
        return RolloutLoader(
            self.questions["train"], self.prompts_per_rollout, self.max_rollouts, self.seed, *self._rank_of_world()
        )

    def val_dataloader(self) -> EvaluationLoader:
        return EvaluationLoader(self.questions["val"], self.eval_batch_size, *self._rank_of_world())

    def test_dataloader(self) -> EvaluationLoader:
        return EvaluationLoader(self.questions["test"], self.eval_batch_size, *self._rank_of_world())

    def predict_dataloader(self) -> EvaluationLoader:
        return self.test_dataloader()

    def _rank_of_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

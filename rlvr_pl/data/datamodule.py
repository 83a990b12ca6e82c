"""The data module: three splits of one source, as prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningDataModule
from transformers import PreTrainedTokenizerBase

from rlvr_pl.data.few_shot import draw_examples, leave_out
from rlvr_pl.data.fields import Fields, answer_fields
from rlvr_pl.data.loaders import EvaluationLoader, RolloutLoader
from rlvr_pl.data.problems import Split
from rlvr_pl.data.prompts import PLAIN_FORMAT, SYSTEM_PROMPT, Example, PromptFormat, warn_if_plain
from rlvr_pl.data.questions import BadRows, build_questions, rewrite_prompts, warn_if_alike
from rlvr_pl.data.sources import DataSource, LocalDataset, find_source
from rlvr_pl.pretrained import load_tokenizer
from rlvr_pl.randomness import hold_out, seed_or_global
from rlvr_pl.types import ConfigError, Question, check_at_least
from rlvr_pl.verifiers import Verifier, find_verifier

_NO_TRAIN = "data.source: it has no train split (a folder needs train.jsonl or train.parquet)"


class GSM8KDataModule(LightningDataModule):
    """Questions with gold answers, in GSM8K's schema or another.

    Three splits: *train*; *val*, a fixed hold-out of the source's train split that is never trained on and serves to
    choose the best checkpoint; *test*, the source's own test split, which is what gets reported. A source without a
    test split has one held out in the same way. ``predict`` answers the test split, or all of a source that has none;
    its rows need no gold answers.

    Args:
        source: ``openai/gsm8k`` or another hub id; the path of a .jsonl or .parquet file, of a folder with train and
            test files, or of a saved dataset; ``embedded``, generated problems; or a data source of your own.
        question: the field of the rows that holds the question.
        answer: the field that holds the gold answer, or a list of fields whose answers are all accepted.
        verifier: what a gold answer means and when an answer is right, for rewards, metrics and records: ``number``,
            ``choice`` (letters), ``math`` (LaTeX), ``exact`` (text), or a class or function of your own.
        tokenizer: the model whose tokenizer and chat template make the prompts; null takes that of the policy which
            the trainer trains.
        system_prompt: what the chat template's system turn says; empty leaves the turn out.
        few_shot: examples that stand in every prompt, as turns of a chat: a number of them to draw from the training
            questions, or a list such as [{question: 1 + 1 = ?, answer: <answer>2</answer>}]. Training questions
            among them are not trained on. Those that are drawn are the same for all seeds and written in the tags.
        chat_template: false writes prompts in the plain form, without the tokenizer's chat template.
        plain_format: the plain form, null for "Question: {question}", an empty line and "Answer:". The system prompt
            stands before it, an example's answer behind it.
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
        question: str = "question",
        answer: str | list[str] = "answer",
        verifier: str | Verifier = "number",
        tokenizer: str | None = None,
        system_prompt: str = SYSTEM_PROMPT,
        few_shot: int | list[Example] | None = None,
        chat_template: bool = True,
        plain_format: str | None = None,
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
        self.question = question
        self.answers = answer_fields(answer)
        if not self.answers:
            raise ConfigError("data.answer is an empty list; name the field of the gold answers")
        self.verifier = find_verifier(verifier)
        self.tokenizer_name = tokenizer
        self.examples_to_draw = few_shot if isinstance(few_shot, int) else 0
        check_at_least(0, "data", few_shot=self.examples_to_draw)
        self.prompt_format = PromptFormat(
            system_prompt,
            few_shot=tuple(few_shot) if isinstance(few_shot, list) else (),
            chat_template=chat_template,
            plain_format=PLAIN_FORMAT if plain_format is None else plain_format,
        )
        self.prompt_format.check()
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
        # That rewards ask for; None: those of the trainer's module.
        self.reward_columns: Mapping[str, str] | None = None
        self._encoded_for: str | None = None  # whose tokenizer made the prompts of these questions
        self._columns: Mapping[str, str] = {}  # that these questions hold

    def setup(self, stage: str | None = None) -> None:
        """Load all splits, check and tokenize them, once.

        Raises:
            ConfigError: if the data cannot be used, or it is open whose tokenizer makes the prompts.
        """
        name = self.tokenizer_name or self._name_of_policy()
        asked = self._asked_columns() if stage in (None, "fit") else {}
        wanted = "predict" if stage == "predict" else "test"
        if name != self._encoded_for:
            self.questions = {}
        elif wanted in self.questions and (wanted == "predict" or asked.keys() <= self._columns.keys()):
            return
        tokenizer = load_tokenizer(name)
        if self.prompt_format.chat_template:
            warn_if_plain(tokenizer)
        if self.examples_to_draw and "test" not in self.questions:
            self.prompt_format = replace(self.prompt_format, few_shot=())  # of another policy's tokenizer
        self.prompt_format.check_with(tokenizer)

        def questions_of(split: Split, rows: Iterable[object], **settings: Any) -> list[Question]:
            fields = Fields(self.question, self.answers, self.verifier, cluster=self.cluster, **settings)
            file = self.source.file(split) if isinstance(self.source, LocalDataset) else None
            writer = self._prompt_writer(tokenizer)
            return build_questions(rows, split, tokenizer, writer, self.max_prompt_tokens, self.bad_rows, fields, file)

        # Examples for the prompt are drawn from train, for the questions of predict too.
        if wanted == "test" or (self.examples_to_draw and "test" not in self.questions):
            self.questions |= self._splits(questions_of, asked, tokenizer)
            self._columns = asked
        if wanted == "predict":
            self.questions["predict"] = self._to_predict(questions_of)
        self._encoded_for = name

    def _splits(
        self,
        questions_of: Callable[..., list[Question]],
        asked: Mapping[str, str],
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[str, list[Question]]:
        train_rows, test_rows = self.source("train"), self.source("test")
        if train_rows is None:
            raise ConfigError(_NO_TRAIN)
        rows = list(train_rows)
        train = questions_of("train", rows, columns=asked)
        if test_rows is None:
            warnings.warn(
                f"data.source has no test split; {self.val_size} train problems are held out for it", stacklevel=3
            )
            train, test = self._hold_out(train, self.split_seed + 1)
        else:
            test = questions_of("test", test_rows)
        warn_if_alike(test)
        train, val = self._hold_out(train, self.split_seed)
        questions = {"train": train, "val": val, "test": test}
        questions["train"] = leave_out(questions, self.prompt_format.few_shot)
        if self.examples_to_draw:  # after the hold-outs, which are then the same with and without examples
            examples, questions["train"] = draw_examples(
                train, rows, self.examples_to_draw, self.split_seed, self.verifier, self.answers[0]
            )
            self.prompt_format = replace(self.prompt_format, few_shot=examples)
            self.prompt_format.check_with(tokenizer)
            questions = {
                split: rewrite_prompts(
                    some, split, tokenizer, self._prompt_writer(tokenizer), self.max_prompt_tokens, self.bad_rows
                )
                for split, some in questions.items()
            }
        return questions

    def _to_predict(self, questions_of: Callable[..., list[Question]]) -> list[Question]:
        for split in ("test", "train"):
            rows = self.source(split)
            if rows is not None:
                return questions_of(split, rows, optional_answers=True)
        raise ConfigError(_NO_TRAIN)

    def _prompt_writer(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
        return lambda question: self.prompt_format.write(tokenizer, question)

    def _asked_columns(self) -> Mapping[str, str]:
        """The columns that the reward functions of the module ask for, each with their names."""
        if self.reward_columns is not None:
            return self.reward_columns
        module = None if self.trainer is None else getattr(self.trainer, "lightning_module", None)
        return getattr(getattr(module, "reward_sum", None), "columns", {})

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the data: the prompt, with which alone its policy is what was trained."""
        return self.prompt_format.as_saved()

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
        self.setup("predict")
        return EvaluationLoader(self.questions["predict"], self.eval_batch_size, *self._rank_of_world())

    def _rank_of_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

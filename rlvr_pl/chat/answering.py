"""A policy that answers questions one by one, in the prompt of its training and by the engine of its rollouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from rlvr_pl.data.prompts import PromptEncoder, PromptFormat
from rlvr_pl.module import GroupPolicyModule
from rlvr_pl.rewards import Completion
from rlvr_pl.rollout import Sampling
from rlvr_pl.run.terminal import visible
from rlvr_pl.types import ConfigError, PromptBatch, Question
from rlvr_pl.verifiers import Number, Verifier

_INCOMPLETE = "\ufffd"  # what a tokenizer writes for a character of which bytes are missing


class Answerer:
    """Answers questions, each by itself.

    Args:
        module: with its policy.
        prompt: what stands around a question.
        max_tokens: of an answer; None means the module's max_completion_tokens, or as many as there are positions for.
        temperature: 0 answers greedily.
        verifier: which grades answers.
    """

    def __init__(
        self,
        module: GroupPolicyModule,
        prompt: PromptFormat,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        verifier: Verifier | None = None,
    ) -> None:
        self.module = module
        self.verifier = verifier or Number()
        self.max_tokens = max_tokens
        self.temperature = temperature
        prompt.check_with(module.tokenizer)
        self._encode = PromptEncoder(module.tokenizer, partial(prompt.write, module.tokenizer))

    def answer(self, question: str, gold: str, number: int, write: Callable[[str], None]) -> Completion:
        """Answer one question.

        Args:
            question: the user's turn.
            gold: the right answer, or nothing.
            number: of the question in this session; the noise depends on it.
            write: is given the answer piece by piece, as it is sampled.

        Raises:
            ConfigError: if the prompt is too long, or a special token in the question would not be read as text.
        """
        try:
            prompt, ids = self._encode(question)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.module.eval_sampling = Sampling(self._room(len(ids)), self.temperature)
        batch = PromptBatch([Question(number, question, gold, prompt, ids)], indices=[number])
        stream = _Stream(self.module.tokenizer, write)
        self.module.engine.on_tokens = stream.tokens
        (completion,) = self.module.read(self.module.answer(batch), batch)
        stream.show(completion.text)
        return replace(completion, verifier=self.verifier)

    def _room(self, prompt: int) -> int:
        """Count the tokens that the answer to a prompt of so many may have."""
        wanted = self.max_tokens or self.module.sampling.max_completion_tokens
        positions = getattr(self.module.policy.config, "max_position_embeddings", None) or prompt + wanted
        left = positions - prompt
        if left < 1 or (self.max_tokens is not None and wanted > left):
            raise ConfigError(
                f"the prompt has {prompt} tokens, which leaves {max(left, 0)} of the {positions} positions of "
                f"{self.module.policy_name!r}; ask something shorter, or for fewer with --max_tokens"
            )
        return min(wanted, left)


class _Stream:
    """Writes what is new of a completion's text, once all bytes of a character are there."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._write = write
        self._written = ""

    def tokens(self, tokens: list[int]) -> None:
        self.show(str(self._tokenizer.decode(tokens, skip_special_tokens=True)).rstrip(_INCOMPLETE))

    def show(self, text: str) -> None:
        if text.startswith(self._written):
            self._write(visible(text[len(self._written) :]))
            self._written = text

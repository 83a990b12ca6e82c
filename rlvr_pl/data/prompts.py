"""From a question to the text that the policy continues, and to its tokens."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlvr_pl.data.chat_templates import QUESTION, Message, carries_prompt, carrying, plain_template
from rlvr_pl.pretrained import load_tokenizer
from rlvr_pl.types import ConfigError

SYSTEM_PROMPT = (
    "Reason step by step in <reasoning>...</reasoning>, then give only the final number in <answer>...</answer>."
)
PLAIN_FORMAT = "Question: {question}\n\nAnswer:"

_MASK = "\ue000"  # of Unicode's private use area: in no special token
_SAVED = "prompt_format"  # its place in the data module's state
_SHOWN = 60  # characters of a setting in a message


@dataclass(frozen=True)
class Example:
    """A question that is answered in the prompt, before the one that is asked.

    Args:
        question: the user's turn.
        answer: what a completion should look like.
    """

    question: str
    answer: str


@dataclass(frozen=True)
class PromptFormat:
    """What stands in a prompt beside its question, and how it is written.

    Attributes:
        system_prompt: the system's turn; empty leaves it out.
        few_shot: examples, as turns of the user and the assistant.
        chat_template: False asks for the plain form even where the tokenizer has a template.
        plain_format: the plain form, which holds ``{question}`` once.
    """

    system_prompt: str = SYSTEM_PROMPT
    few_shot: tuple[Example, ...] = ()
    chat_template: bool = True
    plain_format: str = PLAIN_FORMAT

    @property
    def before(self) -> list[Message]:
        """The messages before the question."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        examples = [
            {"role": role, "content": content}
            for example in self.few_shot
            for role, content in (("user", example.question), ("assistant", example.answer))
        ]
        return [*system, *examples]

    def check(self) -> None:
        """Refuse a plain form without a place for the question.

        Raises:
            ConfigError: naming the key.
        """
        if self.plain_format.count(QUESTION) != 1:
            raise ConfigError(f"data.plain_format is {self.plain_format!r}; it must hold {QUESTION} once")

    def check_with(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse what cannot be written with a tokenizer, once rather than for each row.

        Raises:
            ConfigError: if the chat template fails, or an example holds a special token, which would forge a turn.
        """
        for i, example in enumerate(self.few_shot):
            if forged := special_tokens(tokenizer).search(f"{example.question}\n{example.answer}"):
                raise ConfigError(
                    f"data.few_shot: example {i + 1} holds the special token {forged[0]!r}, which would not be read as "
                    "text; give other examples"
                )
        self.write(tokenizer, "1 + 1 = ?")

    def write(self, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
        """Write the prompt for one question: by the tokenizer's chat template, or plain where it has none.

        Raises:
            ConfigError: if the template fails.
        """
        plain = tokenizer.chat_template is None or not self.chat_template
        template = plain_template(self.plain_format) if plain else None
        messages = [*self.before, {"role": "user", "content": question}]
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # whatever a stranger's template stumbles over
            turns = " and the examples with --data.few_shot null" if self.few_shot else ""
            raise ConfigError(
                f"model.policy: the chat template of {tokenizer.name_or_path!r} fails "
                f"({' '.join(str(error).split())}). Mend it, or leave out the system's turn with "
                f"--data.system_prompt ''{turns}, or the whole template with --data.chat_template false"
            ) from error

    def put_into(self, folder: Path) -> None:
        """Have the tokenizer in a model folder write this prompt around messages without a system turn.

        ``apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)`` then gives the
        prompt that training used. A conversation with a system turn is written as it stands, without the examples.

        Args:
            folder: of an exported model, in which the tokenizer's files lie.
        """
        tokenizer = load_tokenizer(str(folder))
        known = tokenizer.chat_template
        if known is None or not self.chat_template:
            tokenizer.chat_template = carrying(plain_template(self.plain_format), self.before)
        elif isinstance(known, Mapping):
            tokenizer.chat_template = {name: carrying(template, self.before) for name, template in known.items()}
        else:
            tokenizer.chat_template = carrying(known, self.before)
        tokenizer.save_pretrained(folder)

    def as_saved(self) -> dict[str, Any]:
        """Write it for a checkpoint."""
        return {_SAVED: asdict(self) | {"few_shot": [asdict(example) for example in self.few_shot]}}

    def changes_since(self, saved: PromptFormat | None) -> list[str]:
        """Say what differs from the prompt of a checkpoint's run, if that is known."""
        return [
            f"data.{key} is {_short(getattr(self, key))} and was {_short(getattr(saved, key))}"
            for key in (asdict(self) if saved is not None else ())
            if getattr(self, key) != getattr(saved, key)
        ]


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} examples"
    return repr(f"{value[:_SHOWN]}…" if isinstance(value, str) and len(value) > _SHOWN else value)


def format_of(tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """Choose the prompt for a tokenizer by itself: the one that it carries, or else the usual one."""
    usual = PromptFormat()
    return replace(usual, system_prompt="") if carries_prompt(tokenizer.chat_template) else usual


def saved_prompt(checkpoint: Mapping[str, Any]) -> PromptFormat | None:
    """Read the prompt of a checkpoint's run; None where it was written before it held one."""
    # The data module's state stands under its class's name, which may be a subclass's.
    parts = (part for part in checkpoint.values() if isinstance(part, Mapping))
    saved = next((part[_SAVED] for part in parts if _SAVED in part), None)
    if saved is None:
        return None
    return PromptFormat(**{**saved, "few_shot": tuple(Example(**example) for example in saved["few_shot"])})


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Compile what finds a tokenizer's special tokens in a text, the longest first."""
    special = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")


class PromptEncoder:
    """Writes a question's prompt and encodes it; special tokens that stand in the question are encoded as text.

    A tokenizer finds its special tokens wherever they stand, so that ``<|im_end|>`` in a question would end the user's
    turn, and a data set could put words into the system's mouth. The template's own remain what they are, and so does
    the encoding of a question without any.

    Args:
        tokenizer: of the policy.
        format_question: from a question to its prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, format_question: Callable[[str], str]) -> None:
        self.tokenizer = tokenizer
        self.format_question = format_question
        self._special_ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = special_tokens(tokenizer)

    def __call__(self, question: str) -> tuple[str, tuple[int, ...]]:
        """Return the prompt and its P tokens.

        Raises:
            ValueError: if the question holds a special token, and where it ends up in the prompt cannot be told.
        """
        prompt = self.format_question(question)
        forged = self._special.search(question)
        if forged is None:
            return prompt, tuple(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        # The same prompt with other characters there shows which part of it came from the question.
        masked = self.format_question(self._special.sub(lambda found: _MASK * len(found[0]), question))
        if len(masked) != len(prompt) or not self.tokenizer.is_fast:
            raise ValueError(f"its question holds the special token {forged[0]!r}, which would not be read as text")
        encoded = self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = []
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if token in self._special_ids and prompt[start:end] != masked[start:end]:
                text = self.tokenizer(prompt[start:end], add_special_tokens=False, split_special_tokens=True)
                ids += text["input_ids"]
            else:
                ids.append(token)
        return prompt, tuple(ids)


def warn_if_plain(tokenizer: PreTrainedTokenizerBase) -> None:
    """Say once that a tokenizer has no chat template, since prompts then look different from what users expect."""
    if tokenizer.chat_template is None:
        warnings.warn(
            f"The tokenizer {tokenizer.name_or_path!r} has no chat template; prompts use the plain form "
            "(data.plain_format). Give it a chat_template, or use an instruction-tuned model.",
            stacklevel=2,
        )

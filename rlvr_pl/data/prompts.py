"""From a question to the text that the policy continues, and to its tokens."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from rlvr_pl.types import ConfigError

SYSTEM_PROMPT = (
    "Reason step by step in <reasoning>...</reasoning>, then give only the final number in <answer>...</answer>."
)

_MASK = "\ue000"  # of Unicode's private use area: in no special token


def format_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, system_prompt: str, chat_template: bool = True
) -> str:
    """Write the prompt for one question: by the tokenizer's chat template, or plain where it has none.

    Args:
        tokenizer: whose chat template is used.
        question: the user's turn.
        system_prompt: the system's turn; empty leaves it out.
        chat_template: False asks for the plain form even where there is a template.

    Raises:
        ConfigError: if the template fails.
    """
    if tokenizer.chat_template is None or not chat_template:
        return "\n\n".join([system_prompt] * bool(system_prompt) + [f"Question: {question}", "Answer:"])
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages.append({"role": "user", "content": question})
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # whatever a stranger's template stumbles over
        raise ConfigError(
            f"model.policy: the chat template of {tokenizer.name_or_path!r} fails ({' '.join(str(error).split())}). "
            "Mend it, or leave out the system's turn with --data.system_prompt '', or the whole template with "
            "--data.chat_template false"
        ) from error


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
        special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = set(special)
        longest_first = sorted(special.values(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

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
            "'Question: … Answer:'. Give it a chat_template, or use an instruction-tuned model.",
            stacklevel=2,
        )

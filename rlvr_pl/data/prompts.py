"""From a question to the text that the policy continues."""

from __future__ import annotations

import warnings

from transformers import PreTrainedTokenizerBase

SYSTEM_PROMPT = (
    "Reason step by step in <reasoning>...</reasoning>, then give only the final number in <answer>...</answer>."
)


def format_prompt(
    tokenizer: PreTrainedTokenizerBase, question: str, system_prompt: str, chat_template: bool = True
) -> str:
    """Write the prompt for one question: by the tokenizer's chat template, or plain where it has none.

    Args:
        tokenizer: whose chat template is used.
        question: the user's turn.
        system_prompt: the system's turn; empty leaves it out.
        chat_template: False asks for the plain form even where there is a template.
    """
    if tokenizer.chat_template is None or not chat_template:
        return "\n\n".join([system_prompt] * bool(system_prompt) + [f"Question: {question}", "Answer:"])
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages.append({"role": "user", "content": question})
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def warn_if_plain(tokenizer: PreTrainedTokenizerBase) -> None:
    """Say once that a tokenizer has no chat template, since prompts then look different from what users expect."""
    if tokenizer.chat_template is None:
        warnings.warn(
            f"The tokenizer {tokenizer.name_or_path!r} has no chat template; prompts use the plain form "
            "'Question: … Answer:'. Give it a chat_template, or use an instruction-tuned model.",
            stacklevel=2,
        )

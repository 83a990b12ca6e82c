"""Chat templates as text: the plain form as one, and a prompt that a tokenizer carries in its own.

A chat template is a Jinja program that writes messages as one text; transformers keeps it with the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

Message = dict[str, str]
"""``role`` and ``content``."""

QUESTION = "{question}"  # its place in a plain form
_CARRIED = "{#- What stood around every question in training stands around messages that have no system turn. #}"


def plain_template(form: str) -> str:
    r"""Make the template that writes every question in a plain form, and every answer after one of these.

    Args:
        form: holds ``{question}`` once, such as ``Question: {question}\n\nAnswer:``. The system's turn stands before it
            and an example's answer behind it, each followed by an empty line.
    """
    before, _, after = form.partition(QUESTION)
    space = "" if form[-1:].isspace() else " "
    return (
        "{%- for message in messages %}"
        "{%- if message['role'] == 'system' %}{{- message['content'] + '\\n\\n' }}"
        "{%- elif message['role'] == 'user' %}"
        f"{{{{- {_literal(before)} + message['content'] + {_literal(after)} }}}}"
        f"{{%- else %}}{{{{- {_literal(space)} + message['content'] + '\\n\\n' }}}}"
        "{%- endif %}{%- endfor %}"
    )


def carrying(template: str, messages: Sequence[Message]) -> str:
    """Have a template put messages before those that it is given, unless these have a system turn of their own.

    Args:
        template: what writes them then; not a character of its own output changes.
        messages: of the prompt, in order; there may be none.
    """
    # transformers drops the first newline after a block or a comment (trim_blocks): ours, and none of the template's.
    if not messages:
        return f"{_CARRIED}\n{template}"
    turns = ", ".join(
        f"{{'role': {_literal(message['role'])}, 'content': {_literal(message['content'])}}}" for message in messages
    )
    return (
        f"{_CARRIED}\n"
        "{%- if not messages | selectattr('role', 'equalto', 'system') | list %}"
        f"{{%- set messages = [{turns}] + messages | list %}}"
        f"{{%- endif %}}\n{template}"
    )


def carries_prompt(template: str | Mapping[str, str] | None) -> bool:
    """Tell whether :func:`carrying` made a tokenizer's template."""
    templates = template.values() if isinstance(template, Mapping) else [template or ""]
    return any(text.startswith(_CARRIED) for text in templates)


def _literal(text: str) -> str:
    """Write a text as Jinja reads it, which is as JSON does."""
    return json.dumps(text, ensure_ascii=False)

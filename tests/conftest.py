"""Fixtures that several test files share."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from rlvr_pl.pretrained import load_tokenizer


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """A fresh copy of the embedded tokenizer, for a test to change as it likes."""
    return load_tokenizer("embedded")

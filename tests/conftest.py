"""Fixtures that several test files share."""

from __future__ import annotations

import signal

import pytest
from transformers import PreTrainedTokenizerBase

from rlvr_pl.pretrained import load_tokenizer
from tests.helpers.policies import make_tiny_policy

# Under nohup SIGHUP is ignored, here and in the processes that tests start, which then have no hangup to hear.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """A fresh copy of the embedded tokenizer, for a test to change as it likes."""
    return load_tokenizer("embedded")


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny random policy with the embedded tokenizer, for tests that run ``fit``."""
    return make_tiny_policy(tmp_path_factory.mktemp("policy"))

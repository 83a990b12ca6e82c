"""The cache whose groups share their prompt: the logits of whole sequences, whoever comes and goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlvr_pl.rollout import LeanEngine
from rlvr_pl.rollout.cache import KVCache, fill_gaps
from rlvr_pl.rollout.decoder import Decoder
from rlvr_pl.rollout.group_cache import GroupCache
from rlvr_pl.rollout.weights import DecoderWeights
from tests.helpers.engines import sample_again
from tests.helpers.policies import FAMILIES, VOCABULARY, tiny_model
from tests.helpers.simulated_gpu import simulated_gpu

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("no_grad")

COLUMNS = 40
LAYOUTS = [(4, 4), (4, 2), (8, 2), (6, 1)]  # heads, kv heads


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@dataclass
class Flight:
    """Rows of a decoder that read random completions, each compared with the whole sequence at every step."""

    model: PreTrainedModel
    decoder: Decoder
    cache: KVCache
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    rows: list[list[int]] = field(default_factory=list)  # all tokens of each
    logits: list[tuple[list[int], Tensor]] = field(default_factory=list)  # a row's tokens so far, and its logits

    def tokens(self, count: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (count,), generator=self.generator).tolist()

    def admit(self, prompts: Sequence[int], members: Sequence[int]) -> None:
        """Groups whose prompts have so many tokens, each with so many members."""
        ids = [self.tokens(length) for length in prompts]
        padded = torch.tensor([prompt + [0] * (max(prompts) - len(prompt)) for prompt in ids])
        owners = [group for group, count in enumerate(members) for _ in range(count)]
        read = self.decoder.prefill(padded, torch.tensor(prompts))
        self.cache.write_prompts(len(self.rows), read, torch.tensor(owners))
        self.rows += [list(ids[owner]) for owner in owners]

    def step(self, times: int) -> None:
        for _ in range(times):
            positions = torch.tensor([len(row) for row in self.rows])
            for row in self.rows:
                row += self.tokens(1)
            columns = int(positions.max()) + 1
            logits = self.decoder.step(torch.tensor([row[-1] for row in self.rows]), positions, self.cache, columns)
            self.logits += [(list(row), one) for row, one in zip(self.rows, logits, strict=True)]

    def end(self, *rows: int) -> None:
        left, targets, sources = fill_gaps(torch.tensor([i in rows for i in range(len(self.rows))]))
        self.cache.move(sources.tolist(), targets.tolist(), max(map(len, self.rows)))
        for target, source in zip(targets.tolist(), sources.tolist(), strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[left:]
        self.cache.keep(left)

    def fly(self) -> None:
        """Groups come, shrink, end and come, with prompts shorter and longer than before."""
        self.admit([3, 9, 5, 9], [4, 1, 3, 2])
        self.step(2)
        self.end(4)  # the whole second group
        self.step(1)
        self.end(0, 1, 2, 3, 8)  # the first group, and one of the last one's two
        self.admit([14, 2], [2, 5])
        self.step(3)
        self.end(5, 6)
        self.step(1)
        self.end(*range(len(self.rows)))
        self.admit([6, 6], [2, 2])  # of equal lengths: nothing is masked
        self.step(2)

    def largest_error(self) -> float:
        """Beside what the model says of each whole sequence."""
        whole = [self.model(input_ids=torch.tensor([row])).logits[0, -1].float() for row, _ in self.logits]
        actual = torch.stack([logits for _, logits in self.logits])
        return float((actual - torch.stack(whole)).abs().max())


def flight(kind: type[KVCache], family: str = "qwen2", heads: int = 4, kv_heads: int = 2, half: bool = False) -> Flight:
    model = tiny_model(
        family,
        hidden_size=8 * heads,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        initializer_range=0.15,
    )
    decoder = Decoder(model, DecoderWeights(model, torch.bfloat16 if half else torch.float32), COLUMNS)
    return Flight(model, decoder, decoder.make_cache(16, kind))


@pytest.mark.parametrize(("heads", "kv_heads"), LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [GroupCache, KVCache])
def test_logits_are_those_of_whole_sequences(kind: type[KVCache], family: str, heads: int, kv_heads: int) -> None:
    under_test = flight(kind, family, heads, kv_heads)
    under_test.fly()
    assert len(under_test.logits) == 2 * 10 + 9 + 3 * 11 + 9 + 2 * 4
    assert under_test.largest_error() < 1e-5


def test_in_half_precision_it_rounds_no_worse_than_rows_do() -> None:
    errors = {}
    for kind in (GroupCache, KVCache):
        under_test = flight(kind, half=True)
        under_test.fly()
        assert under_test.cache.keys.dtype == torch.bfloat16
        errors[kind] = under_test.largest_error()
    assert 1e-4 < errors[GroupCache] < 1.5 * errors[KVCache]


def test_a_prompt_is_held_once_and_its_room_used_again() -> None:
    under_test = flight(GroupCache)
    cache = under_test.cache
    assert isinstance(cache, GroupCache)
    under_test.admit([3, 9, 5], [4, 1, 3])
    assert cache.prompt_keys.shape == cache.prompt_values.shape == (2, 3, 9, 2, 8)
    assert cache.lengths.tolist() == [3, 9, 5]
    under_test.end(0, 1, 2, 3)
    assert (cache.groups, cache.lengths[:2].tolist()) == (2, [5, 9])  # the last one has taken the free place
    assert cache.group[:4].tolist() == [1, 0, 0, 0]
    place = cache.prompt_keys.data_ptr()
    under_test.admit([7], [2])
    assert cache.prompt_keys.data_ptr() == place
    under_test.admit([10], [1])
    assert cache.prompt_keys.shape == (2, 4, 10, 2, 8)
    under_test.step(2)
    assert under_test.largest_error() < 1e-5
    under_test.end(*range(len(under_test.rows)))
    assert cache.groups == 0


def test_who_shares() -> None:
    """Groups on a CPU; not single completions, nor a GPU, whose captured steps need tensors that stay."""
    for gpu, group_size, kind in ((False, 4, GroupCache), (False, 1, KVCache), (True, 4, KVCache)):
        with simulated_gpu() if gpu else nullcontext():
            engine = LeanEngine(tiny_model().to("cuda" if gpu else "cpu"), [1], 0)
            sample_again(engine, group_size=group_size, tokens=4)
            assert type(engine.rows.cache) is kind

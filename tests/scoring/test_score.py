"""Log-probabilities of completions, against a forward pass per sequence in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from transformers import PreTrainedModel

from rlvr_pl.pretrained import checkpoint_activations
from rlvr_pl.scoring import Layout, PackedGroups, PaddedRows, Sequences, TokenScores, attention, head, score
from rlvr_pl.scoring.attention import PACKED_GROUPS
from rlvr_pl.scoring.score import hidden_states
from tests.helpers import policies as models
from tests.helpers.policies import FAMILIES
from tests.helpers.varlen import slow_varlen_attn

torch.set_num_threads(1)

VOCABULARY = 50


def tiny_model(family: str = "qwen2", tied: bool = False) -> PreTrainedModel:
    model = models.tiny_model(family, tied, vocab_size=VOCABULARY, initializer_range=0.2).train()
    model.set_attn_implementation(PACKED_GROUPS)
    return model


@pytest.fixture(autouse=True, params=["packed", "packed, masked", "packed, by length", "padded"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """Either layout, and all of the ways to attend within packed groups: what each promises is the same."""
    monkeypatch.setattr(attention, "_cpu_attention_takes", lambda query, value: request.param == "packed")
    if request.param == "packed, by length":
        monkeypatch.setattr(attention, "varlen_takes", lambda keys, parameter: True)
        monkeypatch.setattr(varlen, "varlen_attn", slow_varlen_attn)
    return PaddedRows() if request.param == "padded" else PackedGroups()


def with_head_bias(model: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(1)
    model.set_output_embeddings(torch.nn.Linear(32, VOCABULARY, bias=True))
    return model


@dataclass(frozen=True)
class Batch:
    layout: Layout
    prompts: list[list[int]]
    members: list[int]  # n
    completion_ids: Tensor  # (n, T)
    mask: Tensor  # (n, T)

    @property
    def laid_out(self) -> Sequences:
        return self.layout.lay_out(self.prompts, self.members, self.completion_ids, self.mask.sum(dim=1).tolist())


@pytest.fixture
def batch(layout: Layout) -> Batch:
    """Three prompts, of which the first and the last are shared."""
    generator = torch.Generator().manual_seed(0)
    lengths = (5, 9, 1, 4, 7)
    return Batch(
        layout,
        [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in (3, 1, 6)],
        [0, 0, 1, 2, 2],
        torch.randint(VOCABULARY, (len(lengths), max(lengths)), generator=generator),
        torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1),
    )


def scored(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> TokenScores:
    return score(model, batch.laid_out, temperature)


def naive(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies (n, T), a whole forward pass for each sequence, without padding."""
    logprobs, entropies = [], []
    for member, completion, mask in zip(batch.members, batch.completion_ids, batch.mask, strict=True):
        prompt = batch.prompts[member]
        answer = completion[mask]
        ids = torch.cat([torch.tensor(prompt), answer]).unsqueeze(0)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        distribution = torch.log_softmax(logits / temperature, dim=-1)
        pads = len(mask) - len(answer)
        chosen = distribution.gather(1, answer.unsqueeze(1)).squeeze(1)
        logprobs.append(torch.nn.functional.pad(chosen, (0, pads)))
        entropies.append(torch.nn.functional.pad(-(distribution.exp() * distribution).sum(1), (0, pads)))
    return torch.stack(logprobs), torch.stack(entropies)


def weights(mask: Tensor) -> Tensor:
    """What the gradient is taken of: Σ weights · log-probabilities."""
    return torch.randn(mask.shape, generator=torch.Generator().manual_seed(7)) * mask


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            actual[name], gradient.float(), rtol=1e-4, atol=atol, msg=partial("{}: {}".format, name)
        )


# The layout


def test_rows_are_laid_out_side_by_side_with_every_place_known() -> None:
    """Prompts of 2 and 1 tokens, completions of 1 and 3; what stands on a pad (9) is nowhere."""
    completions = torch.tensor([[21, 9, 9, 9], [22, 23, 24, 9]])
    rows = PaddedRows().lay_out([[5, 6], [7]], [0, 1], completions, [1, 3])
    assert rows.input_ids.tolist() == [[5, 6, 21, 0], [7, 22, 23, 24]]
    assert rows.targets.tolist() == [21, 22, 23, 24]
    assert rows.predicting.tolist() == [1, 4, 5, 6], "the place before each of them"
    assert rows.places.tolist() == [0, 4, 5, 6], "in (n · T)"
    assert rows.shape == (2, 4)
    assert rows.packing is rows.position_ids is None


def test_groups_are_packed_with_every_place_known() -> None:
    """The first prompt has completions of 1 and 3 tokens, the second one of 2 and one of none."""
    completions = torch.tensor([[21, 9, 9], [22, 23, 24], [25, 26, 9], [9, 9, 9]])
    row = PackedGroups().lay_out([[5, 6], [7]], [0, 0, 1, 1], completions, [1, 3, 2, 0])
    assert row.input_ids.tolist() == [[5, 6, 21, 22, 23, 24, 7, 25, 26]]
    assert row.position_ids is not None
    assert row.position_ids.tolist() == [[0, 1, 2, 2, 3, 4, 0, 1, 2]]
    assert row.targets.tolist() == [21, 22, 23, 24, 25, 26]
    assert row.predicting.tolist() == [1, 1, 3, 4, 6, 7], "a completion's first token follows the prompt"
    assert row.places.tolist() == [0, 3, 4, 5, 6, 7], "in (n · T)"
    assert row.shape == (4, 3)
    assert row.packing is not None
    first, second = row.packing.groups
    assert (first.prompt, first.completions, first.answers) == (slice(0, 2), (slice(2, 3), slice(3, 6)), slice(2, 6))
    assert (second.prompt, second.completions, second.answers) == (slice(6, 7), (slice(7, 9),), slice(7, 9))


# Values


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_entropies_and_gradients_are_the_naive_ones(
    family: str, tied: bool, temperature: float, batch: Batch
) -> None:
    model = tiny_model(family, tied)
    exact = copy.deepcopy(model).double()
    logprobs, entropies = naive(exact, batch, temperature)
    scores = scored(model, batch, temperature)
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    torch.testing.assert_close(scores.logprobs, logprobs.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.entropy, entropies.float(), rtol=0, atol=1e-5)
    weight = weights(batch.mask)
    assert_gradients(
        gradients(model, (weight * scores.logprobs).sum()), gradients(exact, (weight * logprobs).sum()), atol=2e-5
    )


def test_pads_are_exactly_0_in_value_and_gradient(batch: Batch) -> None:
    model = tiny_model()
    scores = scored(model, batch)
    pads = int((~batch.mask).sum())
    assert pads == 19
    assert scores.logprobs[~batch.mask].tolist() == [0.0] * pads
    assert scores.entropy[~batch.mask].tolist() == [0.0] * pads
    assert (scores.logprobs[batch.mask] < 0).all()
    assert (scores.entropy[batch.mask] > 0).all()
    gradient = gradients(model, scores.logprobs[~batch.mask].sum())
    assert {name: g.abs().max().item() for name, g in gradient.items()} == dict.fromkeys(gradient, 0.0)


@pytest.mark.parametrize("pad", [-100, 0, VOCABULARY - 1, 10**6])
def test_what_stands_on_a_pad_is_not_read(pad: int, batch: Batch) -> None:
    model = tiny_model()
    poisoned = replace(batch, completion_ids=batch.completion_ids.masked_fill(~batch.mask, pad))
    with torch.no_grad():
        expected, actual = scored(model, batch), scored(model, poisoned)
    assert torch.equal(actual.logprobs, expected.logprobs)
    assert torch.equal(actual.entropy, expected.entropy)


def test_a_wider_batch_changes_nothing_but_the_pads(batch: Batch) -> None:
    model = tiny_model()
    wide = replace(
        batch,
        completion_ids=torch.nn.functional.pad(batch.completion_ids, (0, 3), value=1),
        mask=torch.nn.functional.pad(batch.mask, (0, 3)),
    )
    with torch.no_grad():
        expected, actual = scored(model, batch), scored(model, wide)
    assert torch.equal(actual.logprobs, torch.nn.functional.pad(expected.logprobs, (0, 3)))


def test_the_entropy_has_no_gradient_and_does_without_one_for_all(batch: Batch) -> None:
    model = tiny_model()
    scores = scored(model, batch)
    assert scores.logprobs.requires_grad
    assert not scores.entropy.requires_grad
    with torch.no_grad():
        again = scored(model, batch)
    assert not again.logprobs.requires_grad
    assert torch.equal(again.logprobs, scores.logprobs)
    assert torch.equal(again.entropy, scores.entropy)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_bias_of_the_head_counts(temperature: float, batch: Batch) -> None:
    model = with_head_bias(tiny_model())
    exact = copy.deepcopy(model).double()
    logprobs, _ = naive(exact, batch, temperature)
    scores = scored(model, batch, temperature)
    torch.testing.assert_close(scores.logprobs, logprobs.float(), rtol=0, atol=1e-5)
    weight = weights(batch.mask)
    gradient = gradients(model, (weight * scores.logprobs).sum())
    assert gradient["lm_head.bias"].abs().max() > 0.1
    assert_gradients(gradient, gradients(exact, (weight * logprobs).sum()), atol=2e-5)


# Chunks


@pytest.mark.parametrize("positions", [0, 1, 3, 25, 26])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_change_nothing(positions: int, bias: bool, monkeypatch: pytest.MonkeyPatch, batch: Batch) -> None:
    """26 positions in chunks of so many; even a budget under one position's logits makes chunks of one."""
    model = tiny_model(tied=not bias)
    if bias:
        model = with_head_bias(model)
    weight = weights(batch.mask)
    whole = scored(model, batch, 0.7)
    expected = gradients(model, (weight * whole.logprobs).sum())
    sizes = []
    multiply = head._logits

    def spy(hidden: Tensor, *args: Any) -> Tensor:
        sizes.append(len(hidden))
        return multiply(hidden, *args)

    monkeypatch.setattr(head, "CHUNK_LOGITS", positions * VOCABULARY)
    monkeypatch.setattr(head, "_logits", spy)
    chunked = scored(model, batch, 0.7)
    size = max(positions, 1)
    assert sizes == [min(size, 26 - start) for start in range(0, 26, size)]
    actual = gradients(model, (weight * chunked.logprobs).sum())
    torch.testing.assert_close(chunked.logprobs, whole.logprobs, rtol=0, atol=5e-6)  # of 10 nats: rounding
    torch.testing.assert_close(chunked.entropy, whole.entropy, rtol=0, atol=5e-6)
    assert_gradients(actual, expected, atol=1e-5)


def test_chunks_without_gradient(monkeypatch: pytest.MonkeyPatch, batch: Batch) -> None:
    model = tiny_model()
    with torch.no_grad():
        whole = scored(model, batch)
        monkeypatch.setattr(head, "CHUNK_LOGITS", 4 * VOCABULARY)
        chunked = scored(model, batch)
    torch.testing.assert_close(chunked.logprobs, whole.logprobs, rtol=0, atol=1e-6)
    assert not chunked.logprobs.requires_grad


# Empty micro-batches


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_completion_token_every_gradient_is_0(
    family: str, tied: bool, checkpointing: bool, layout: Layout
) -> None:
    model = tiny_model(family, tied)
    if checkpointing:
        checkpoint_activations(model)
    scores = score(model, layout.lay_out([[4]], [0], torch.zeros(1, 1, dtype=torch.long), [0]), 1.0)
    assert scores.logprobs.tolist() == scores.entropy.tolist() == [[0.0]]
    scores.logprobs.sum().backward()
    found = {name: None if p.grad is None else p.grad.abs().max().item() for name, p in model.named_parameters()}
    assert found == dict.fromkeys(found, 0.0)


def test_a_row_without_a_completion_token_adds_nothing(batch: Batch) -> None:
    model = tiny_model()
    longer = replace(
        batch,
        prompts=[*batch.prompts, [4, 4]],
        members=[*batch.members, 3],
        completion_ids=torch.cat([batch.completion_ids, batch.completion_ids[:1]]),
        mask=torch.cat([batch.mask, torch.zeros_like(batch.mask[:1])]),
    )
    weight = weights(batch.mask)
    expected, actual = scored(model, batch), scored(model, longer)
    torch.testing.assert_close(actual.logprobs[:-1], expected.logprobs, rtol=0, atol=1e-6)
    assert actual.logprobs[-1].tolist() == [0.0] * 9
    assert_gradients(
        gradients(model, (weight * actual.logprobs[:-1]).sum() + actual.logprobs[-1].sum()),
        gradients(model, (weight * expected.logprobs).sum()),
        atol=1e-5,
    )


# Gradient checkpointing


def test_gradient_checkpointing_changes_nothing(batch: Batch) -> None:
    model = tiny_model()
    weight = weights(batch.mask)
    plain = scored(model, batch)
    expected = gradients(model, (weight * plain.logprobs).sum())
    checkpoint_activations(model)
    again = scored(model, batch)
    torch.testing.assert_close(again.logprobs, plain.logprobs, rtol=0, atol=1e-6)
    assert_gradients(gradients(model, (weight * again.logprobs).sum()), expected, atol=1e-5)


# Autocast


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def test_under_autocast_the_head_and_the_softmax_stay_in_float32(batch: Batch) -> None:
    model = tiny_model()
    with torch.no_grad(), autocast():
        scores = scored(model, batch, 0.7)
        hidden = hidden_states(model, batch.laid_out)
        bf16_logprobs, _ = naive(model, batch, 0.7)
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    logits = hidden.double() @ model.get_output_embeddings().weight.detach().double().T / 0.7
    distribution = logits.log_softmax(-1)
    lengths = batch.mask.sum(dim=1).tolist()
    for i, (length, rows) in enumerate(zip(lengths, distribution.split(lengths), strict=True)):
        expected = rows.gather(1, batch.completion_ids[i, :length].unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(scores.logprobs[i, :length], expected.float(), rtol=0, atol=2e-6)
        entropy = -(rows.exp() * rows).sum(1)
        torch.testing.assert_close(scores.entropy[i, :length], entropy.float(), rtol=0, atol=2e-6)
    assert (bf16_logprobs - scores.logprobs).abs().max() > 1e-3  # a bfloat16 head would show


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_after_scoring_without_gradient_every_parameter_still_gets_its_own(
    checkpointing: bool, chunked: bool, monkeypatch: pytest.MonkeyPatch, batch: Batch
) -> None:
    """Autocast's cache of cast weights, made under no_grad, would cut the gradient off."""
    model = tiny_model()
    if checkpointing:
        checkpoint_activations(model)
    if chunked:
        monkeypatch.setattr(head, "CHUNK_LOGITS", 4 * VOCABULARY)
    weight = weights(batch.mask)
    with autocast():
        expected = gradients(model, (weight * scored(model, batch).logprobs).sum())
    with autocast():
        with torch.no_grad():
            scored(model, batch)
        actual = gradients(model, (weight * scored(model, batch).logprobs).sum())
    assert all(g.abs().max() > 0 for g in actual.values())
    for name, gradient in expected.items():
        assert torch.equal(actual[name], gradient), name


def test_after_a_step_inside_the_same_autocast_the_new_weights_are_scored(batch: Batch) -> None:
    """Autocast's cache of cast weights, made before the step, would be stale."""
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with autocast():
        before = scored(model, batch).logprobs
        (weights(batch.mask) * before).sum().backward()
        optimizer.step()
        with torch.no_grad():
            without_gradient = scored(model, batch).logprobs
        with_gradient = scored(model, batch).logprobs
    with autocast(), torch.no_grad():
        fresh = scored(model, batch).logprobs
    assert (fresh - before).abs().max() > 0.1
    assert torch.equal(without_gradient, fresh)
    assert torch.equal(with_gradient, fresh)


def test_two_steps_inside_one_autocast_are_two_steps_apart(batch: Batch) -> None:
    model = tiny_model()
    apart = copy.deepcopy(model)

    def step(policy: PreTrainedModel) -> None:
        loss = (weights(batch.mask) * scored(policy, batch).logprobs).sum()
        for parameter, gradient in zip(policy.parameters(), gradients(policy, loss).values(), strict=True):
            parameter.data.sub_(0.05 * gradient)

    with autocast():
        step(model)
        step(model)
    for _ in range(2):
        with autocast():
            step(apart)
    for (name, parameter), expected in zip(model.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(parameter, expected), name


# The same bits each time


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Sums that are left to threads have another order each time."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_threads_do_not_show_in_the_gradient(layout: Layout) -> None:
    """Enough completions of one prompt that threads share them: its last token predicts the first of each."""
    n, T = 64, 24
    ids = torch.randint(VOCABULARY, (n, T), generator=torch.Generator().manual_seed(0))
    batch = Batch(layout, [list(range(20))], [0] * n, ids, torch.ones(n, T, dtype=torch.bool))
    model = tiny_model()

    def computed() -> dict[str, Tensor]:
        return gradients(model, (weights(batch.mask) * scored(model, batch).logprobs).sum())

    first = computed()
    for _ in range(8):
        for name, gradient in computed().items():
            assert torch.equal(gradient, first[name]), name

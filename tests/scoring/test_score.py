"""Log-probabilities of completions, against a forward pass per sequence in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlvr_pl.pretrained import checkpoint_activations
from rlvr_pl.scoring import TokenScores, head, lay_out, score
from tests.helpers import policies as models
from tests.helpers.policies import FAMILIES

torch.set_num_threads(1)

VOCABULARY = 50


def tiny_model(family: str = "qwen2", tied: bool = False) -> PreTrainedModel:
    return models.tiny_model(family, tied, vocab_size=VOCABULARY, initializer_range=0.2).train()


def with_head_bias(model: PreTrainedModel) -> PreTrainedModel:
    torch.manual_seed(1)
    model.set_output_embeddings(torch.nn.Linear(32, VOCABULARY, bias=True))
    return model


@dataclass(frozen=True)
class Sequences:
    prompt_ids: list[list[int]]
    completion_ids: Tensor  # (n, T)
    mask: Tensor  # (n, T)


def sequences(
    prompt_lengths: tuple[int, ...] = (3, 1, 6, 2, 4), lengths: tuple[int, ...] = (5, 9, 1, 4, 7)
) -> Sequences:
    generator = torch.Generator().manual_seed(0)
    return Sequences(
        [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in prompt_lengths],
        torch.randint(VOCABULARY, (len(lengths), max(lengths)), generator=generator),
        torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1),
    )


def scored(model: PreTrainedModel, batch: Sequences, temperature: float = 1.0) -> TokenScores:
    lengths = batch.mask.sum(dim=1).tolist()
    return score(model, lay_out(batch.prompt_ids, batch.completion_ids, lengths), temperature)


def naive(model: PreTrainedModel, batch: Sequences, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies (n, T), a whole forward pass for each sequence, without padding."""
    logprobs, entropies = [], []
    for prompt, completion, mask in zip(batch.prompt_ids, batch.completion_ids, batch.mask, strict=True):
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
    rows = lay_out([[5, 6], [7]], completions, [1, 3])
    assert rows.input_ids.tolist() == [[5, 6, 21, 0], [7, 22, 23, 24]]
    assert rows.targets.tolist() == [21, 22, 23, 24]
    assert rows.predicting.tolist() == [1, 4, 5, 6], "the place before each of them"
    assert rows.places.tolist() == [0, 4, 5, 6], "in (n · T)"
    assert rows.shape == (2, 4)


# Values


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_entropies_and_gradients_are_the_naive_ones(family: str, tied: bool, temperature: float) -> None:
    model, batch = tiny_model(family, tied), sequences()
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


def test_pads_are_exactly_0_in_value_and_gradient() -> None:
    model, batch = tiny_model(), sequences()
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
def test_what_stands_on_a_pad_is_not_read(pad: int) -> None:
    model, batch = tiny_model(), sequences()
    poisoned = replace(batch, completion_ids=batch.completion_ids.masked_fill(~batch.mask, pad))
    with torch.no_grad():
        expected, actual = scored(model, batch), scored(model, poisoned)
    assert torch.equal(actual.logprobs, expected.logprobs)
    assert torch.equal(actual.entropy, expected.entropy)


def test_a_wider_batch_changes_nothing_but_the_pads() -> None:
    model, batch = tiny_model(), sequences()
    wide = replace(
        batch,
        completion_ids=torch.nn.functional.pad(batch.completion_ids, (0, 3), value=1),
        mask=torch.nn.functional.pad(batch.mask, (0, 3)),
    )
    with torch.no_grad():
        expected, actual = scored(model, batch), scored(model, wide)
    assert torch.equal(actual.logprobs, torch.nn.functional.pad(expected.logprobs, (0, 3)))


def test_the_entropy_has_no_gradient_and_does_without_one_for_all() -> None:
    model, batch = tiny_model(), sequences()
    scores = scored(model, batch)
    assert scores.logprobs.requires_grad
    assert not scores.entropy.requires_grad
    with torch.no_grad():
        again = scored(model, batch)
    assert not again.logprobs.requires_grad
    assert torch.equal(again.logprobs, scores.logprobs)
    assert torch.equal(again.entropy, scores.entropy)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_bias_of_the_head_counts(temperature: float) -> None:
    model, batch = with_head_bias(tiny_model()), sequences()
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
def test_chunks_change_nothing(positions: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """26 positions in chunks of so many; even a budget under one position's logits makes chunks of one."""
    model, batch = tiny_model(tied=not bias), sequences()
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
    torch.testing.assert_close(chunked.logprobs, whole.logprobs, rtol=0, atol=1e-6)
    torch.testing.assert_close(chunked.entropy, whole.entropy, rtol=0, atol=5e-6)  # of 4 nats: rounding
    assert_gradients(actual, expected, atol=1e-5)


def test_chunks_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model(), sequences()
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
def test_without_a_completion_token_every_gradient_is_0(family: str, tied: bool, checkpointing: bool) -> None:
    model = tiny_model(family, tied)
    if checkpointing:
        checkpoint_activations(model)
    scores = score(model, lay_out([[4]], torch.zeros(1, 1, dtype=torch.long), [0]), 1.0)
    assert scores.logprobs.tolist() == scores.entropy.tolist() == [[0.0]]
    scores.logprobs.sum().backward()
    found = {name: None if p.grad is None else p.grad.abs().max().item() for name, p in model.named_parameters()}
    assert found == dict.fromkeys(found, 0.0)


def test_a_row_without_a_completion_token_adds_nothing() -> None:
    model, batch = tiny_model(), sequences()
    longer = Sequences(
        [*batch.prompt_ids, [4, 4]],
        torch.cat([batch.completion_ids, batch.completion_ids[:1]]),
        torch.cat([batch.mask, torch.zeros_like(batch.mask[:1])]),
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


def test_gradient_checkpointing_changes_nothing() -> None:
    model, batch = tiny_model(), sequences()
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


def test_under_autocast_the_head_and_the_softmax_stay_in_float32() -> None:
    model, batch = tiny_model(), sequences()
    with torch.no_grad(), autocast():
        scores = scored(model, batch, 0.7)
        ids = lay_out(batch.prompt_ids, batch.completion_ids, batch.mask.sum(dim=1).tolist()).input_ids
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        bf16_logprobs, _ = naive(model, batch, 0.7)
    assert scores.logprobs.dtype == scores.entropy.dtype == torch.float32
    logits = hidden.double() @ model.get_output_embeddings().weight.detach().double().T / 0.7
    distribution = logits.log_softmax(-1)
    for i, (prompt, mask) in enumerate(zip(batch.prompt_ids, batch.mask, strict=True)):
        length = int(mask.sum())
        rows = distribution[i, len(prompt) - 1 : len(prompt) - 1 + length]
        expected = rows.gather(1, batch.completion_ids[i, :length].unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(scores.logprobs[i, :length], expected.float(), rtol=0, atol=2e-6)
        entropy = -(rows.exp() * rows).sum(1)
        torch.testing.assert_close(scores.entropy[i, :length], entropy.float(), rtol=0, atol=2e-6)
    assert (bf16_logprobs - scores.logprobs).abs().max() > 1e-3  # a bfloat16 head would show


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_after_scoring_without_gradient_every_parameter_still_gets_its_own(
    checkpointing: bool, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast's cache of cast weights, made under no_grad, would cut the gradient off."""
    model, batch = tiny_model(), sequences()
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


def test_after_a_step_inside_the_same_autocast_the_new_weights_are_scored() -> None:
    """Autocast's cache of cast weights, made before the step, would be stale."""
    model, batch = tiny_model(), sequences()
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


def test_two_steps_inside_one_autocast_are_two_steps_apart() -> None:
    model, batch = tiny_model(), sequences()
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

"""Choosing tokens: greedy, and the inverse CDF on given uniforms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlvr_pl.rollout.sampling import Sampling, choose_tokens

torch.set_num_threads(1)

ALMOST_ONE = 1 - 2.0**-24  # the largest float32 under 1
INF = math.inf


def logits_of(*probabilities: float) -> Tensor:
    """Logits (1, V) of a distribution; probability 0 is −inf."""
    return torch.tensor([probabilities]).log()


def choose(logits: Tensor, uniforms: list[float], temperature: float = 1.0) -> list[int]:
    """The token of one distribution (1, V) at each uniform."""
    tokens, _ = choose_tokens(logits.expand(len(uniforms), -1), temperature, torch.tensor(uniforms))
    return tokens.tolist()


def random_rows(rows: int, vocabulary: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * 3, torch.rand(rows, generator=generator)


def before(value: float) -> float:
    """The float32 next to ``value`` on the side of 0."""
    return float(torch.nextafter(torch.tensor(value), torch.tensor(0.0)))


# Greedy


def test_greedy_takes_the_likeliest_token_and_reports_its_logprob_at_temperature_1() -> None:
    tokens, logprobs = choose_tokens(torch.cat([logits_of(0.1, 0.7, 0.2), logits_of(0.6, 0.0, 0.4)]), 0.0, None)
    assert tokens.tolist() == [1, 0]
    torch.testing.assert_close(logprobs, torch.tensor([0.7, 0.6]).log(), rtol=0, atol=1e-6)


def test_greedy_does_not_read_the_uniforms() -> None:
    logits, uniforms = random_rows(16, 50)
    for noise in (None, uniforms, torch.full_like(uniforms, torch.nan)):
        tokens, logprobs = choose_tokens(logits, 0.0, noise)
        assert tokens.tolist() == logits.argmax(dim=1).tolist()
        torch.testing.assert_close(logprobs, logits.double().log_softmax(1).amax(1).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-8, 1e-30])
def test_greedy_takes_the_larger_logit_however_close_the_second_is(gap: float) -> None:
    tokens, _ = choose_tokens(torch.tensor([[0.0, gap, -1.0]]), 0.0, None)
    assert tokens.tolist() == [1]


# Inverse CDF


def test_a_token_is_the_first_whose_cumulative_probability_exceeds_the_uniform() -> None:
    logits = logits_of(0.1, 0.2, 0.3, 0.4)
    assert choose(logits, [0.0, 0.05, 0.0999, 0.1001, 0.2999, 0.3001, 0.5999, 0.6001, 0.99]) == [
        0, 0, 0, 1, 1, 2, 2, 3, 3,
    ]  # fmt: skip


@pytest.mark.parametrize("vocabulary", [2, 4, 8, 64])
def test_a_uniform_on_a_boundary_belongs_to_the_token_above_it(vocabulary: int) -> None:
    logits = torch.zeros(1, vocabulary)  # powers of two: the boundaries are exact whatever exp and log round
    boundaries = [k / vocabulary for k in range(1, vocabulary)]
    assert choose(logits, boundaries) == list(range(1, vocabulary))
    assert choose(logits, [before(b) for b in boundaries]) == list(range(vocabulary - 1))


def test_the_smallest_and_the_largest_uniform_stay_inside_the_vocabulary() -> None:
    for vocabulary in (1, 2, 3, 1000, 20_011):
        logits, _ = random_rows(4, vocabulary)
        for row in logits:
            tokens = choose(row.unsqueeze(0), [0.0, ALMOST_ONE])
            assert 0 <= min(tokens) <= max(tokens) < vocabulary
    assert choose(torch.zeros(1, 8), [0.0, ALMOST_ONE]) == [0, 7]


@pytest.mark.parametrize("impossible", [-INF, -1e30, -200.0])
def test_tokens_of_probability_0_are_never_chosen(impossible: float) -> None:
    """At the start for u = 0, at the end for u just under 1, and in between; −200 underflows to 0."""
    logits = torch.tensor([[impossible, impossible, 0.0, impossible, 0.0, impossible, impossible]])
    assert choose(logits, [0.0, 0.25, before(0.5), 0.5, 0.75, ALMOST_ONE]) == [2, 2, 2, 4, 4, 4]
    lone = torch.tensor([[impossible, 3.0, impossible]])
    assert choose(lone, [0.0, 0.5, ALMOST_ONE]) == [1, 1, 1]


def rounded_total(sign: int) -> tuple[Tensor, float]:
    """Logits whose float32 probabilities add up to less (−1) or more (1) than 1, with impossible tokens at the end."""
    for seed in range(1000):
        logits, _ = random_rows(1, 500, seed)
        logits[:, -3:] = -INF
        total = logits.log_softmax(1).exp().cumsum(1)[0, -1].item()
        if sign * (total - 1) > 1e-7:
            return logits, total
    raise AssertionError("no such distribution")


@pytest.mark.parametrize("sign", [-1, 1])
def test_where_rounding_makes_the_total_miss_1_the_last_possible_token_takes_the_rest(sign: int) -> None:
    logits, total = rounded_total(sign)
    assert (total < ALMOST_ONE) == (sign < 0)
    assert choose(logits, [ALMOST_ONE]) == [496]


LARGE = 128 * 160  # looked for by blocks


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("vocabulary", [LARGE, LARGE + 1])
def test_a_large_vocabularys_tokens_are_the_inverse_cdf_too(vocabulary: int, temperature: float) -> None:
    logits, uniforms = random_rows(200, vocabulary, seed=2)
    tokens, logprobs = choose_tokens(logits, temperature, uniforms)
    log_probabilities = (logits.double() / temperature).log_softmax(1)
    cumulative = log_probabilities.exp().cumsum(1)
    above = cumulative.gather(1, tokens.unsqueeze(1)).squeeze(1) - uniforms
    below = above - log_probabilities.exp().gather(1, tokens.unsqueeze(1)).squeeze(1)
    assert above.min() > -1e-6
    assert below.max() < 1e-6
    torch.testing.assert_close(
        logprobs.double(), log_probabilities.gather(1, tokens.unsqueeze(1)).squeeze(1), rtol=0, atol=1e-5
    )


def test_in_a_large_vocabulary_tokens_of_probability_0_are_never_chosen() -> None:
    """The possible ones stand at the edges of blocks, behind blocks without any and before others."""
    logits = torch.full((1, LARGE), -INF)
    possible = [128 * 3, 128 * 4 - 1, 128 * 9 + 5, 128 * 100 - 1]
    logits[:, possible] = 0.0
    uniforms = [0.0, before(0.25), 0.25, before(0.5), 0.5, before(0.75), 0.75, ALMOST_ONE]
    assert choose(logits, uniforms) == [token for token in possible for _ in range(2)]


def test_without_uniforms_sampling_is_refused() -> None:
    with pytest.raises(AssertionError, match="uniforms"):
        choose_tokens(torch.zeros(1, 2), 1.0, None)


# The distribution


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.0])
def test_logprobs_are_those_of_the_tempered_distribution(temperature: float) -> None:
    logits, uniforms = random_rows(64, 50)
    tokens, logprobs = choose_tokens(logits, temperature, uniforms)
    expected = (logits.double() / temperature).log_softmax(1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    assert logprobs.dtype == torch.float32
    assert tokens.dtype == torch.int64
    torch.testing.assert_close(logprobs, expected.float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_the_inverse_cdf_of_the_tempered_distribution(temperature: float) -> None:
    logits, uniforms = random_rows(256, 50, seed=1)
    tokens, _ = choose_tokens(logits, temperature, uniforms)
    cumulative = (logits.double() / temperature).softmax(1).cumsum(1)
    assert tokens.tolist() == (cumulative <= uniforms.double().unsqueeze(1)).sum(1).tolist()


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_evenly_spread_uniforms_give_every_token_its_share(temperature: float) -> None:
    logits = logits_of(0.05, 0.3, 0.0, 0.15, 0.25, 0.2, 0.04, 0.01)
    n = 20_000
    uniforms = (torch.arange(n) + 0.5) / n
    tokens, _ = choose_tokens(logits.expand(n, -1), temperature, uniforms)
    expected = n * (logits / temperature).softmax(1).squeeze(0)
    counts = torch.bincount(tokens, minlength=8)
    assert counts[2] == 0
    assert ((counts - expected).abs() <= 1.01).all()  # each end of a token's interval cuts at most one uniform


def test_sampled_frequencies_follow_the_softmax() -> None:
    """χ² of 20,000 draws over 8 tokens: 7 degrees of freedom, 24.32 is exceeded once in a thousand."""
    logits = torch.tensor([[1.0, -0.5, 0.3, 2.0, 0.0, -1.5, 1.2, 0.7]])
    n = 20_000
    uniforms = torch.rand(n, generator=torch.Generator().manual_seed(0))
    tokens, _ = choose_tokens(logits.expand(n, -1), 0.8, uniforms)
    expected = n * (logits / 0.8).softmax(1).squeeze(0)
    chi_square = ((torch.bincount(tokens, minlength=8) - expected).square() / expected).sum().item()
    assert chi_square < 24.32


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_row_depends_on_nothing_but_its_logits_and_its_uniform(temperature: float) -> None:
    logits, uniforms = random_rows(12, 101, seed=2)
    tokens, logprobs = choose_tokens(logits, temperature, uniforms)
    for i in range(12):
        token, logprob = choose_tokens(logits[i : i + 1], temperature, uniforms[i : i + 1])
        assert (token.item(), logprob.item()) == (tokens[i].item(), logprobs[i].item())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled_tokens, shuffled_logprobs = choose_tokens(logits[order], temperature, uniforms[order])
    assert shuffled_tokens.tolist() == tokens[order].tolist()
    assert shuffled_logprobs.tolist() == logprobs[order].tolist()


def test_the_arguments_are_left_as_they_were() -> None:
    logits, uniforms = random_rows(4, 10)
    logits_before, uniforms_before = logits.clone(), uniforms.clone()
    choose_tokens(logits, 0.7, uniforms)
    assert torch.equal(logits, logits_before)
    assert torch.equal(uniforms, uniforms_before)


def test_sampling_defaults_to_the_untempered_distribution() -> None:
    assert Sampling(max_completion_tokens=5) == Sampling(5, 1.0)


def test_no_token_or_a_negative_temperature_is_refused() -> None:
    for tokens in (0, -3):
        with pytest.raises(ValueError, match=rf"max_completion_tokens is {tokens}; it must be at least 1"):
            Sampling(tokens)
    with pytest.raises(ValueError, match=r"temperature is -0.1; it must be at least 0"):
        Sampling(5, -0.1)
    assert Sampling(1, 0.0).temperature == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("vocabulary", [5, LARGE])
def test_logits_that_are_not_finite_give_a_token_of_the_vocabulary_and_no_log_probability(
    bad: float, temperature: float, vocabulary: int
) -> None:
    """On a GPU an index behind the vocabulary would end the process, and with it the chance to say what happened."""
    logits = torch.zeros(2, vocabulary)
    logits[1, 3] = bad
    tokens, logprobs = choose_tokens(logits, temperature, torch.tensor([0.5, 0.5]))
    assert 0 <= tokens[1] < vocabulary
    assert logprobs.isfinite().tolist() == [True, False]

"""How many seeds and questions a comparison takes, against textbook figures and simulated studies."""

from __future__ import annotations

import numpy as np
import pytest

from rlvr_pl.report.planning import power, seeds_needed
from rlvr_pl.report.statistics import compare_pair
from rlvr_pl.report.two_way import Components, components

PARTS = Components(seed=4e-4, question=0.02, rest=0.2)


def differences(rng: np.random.Generator, S: int, Q: int, parts: Components, difference: float) -> np.ndarray:
    """(S, Q) of normal effects."""
    of_seeds, of_questions = rng.normal(0, parts.seed**0.5, (S, 1)), rng.normal(0, parts.question**0.5, (1, Q))
    return difference + of_seeds + of_questions + rng.normal(0, parts.rest**0.5, (S, Q))


def test_where_questions_do_not_matter_it_is_the_power_of_a_paired_t_test() -> None:
    """An effect of one standard deviation takes ten pairs for 80 % (Cohen 1988's tables: 0.80)."""
    only_seeds = Components(seed=0.01**2, question=0, rest=0)
    assert power(0.01, 10, 512, only_seeds) == pytest.approx(0.803, abs=0.0005)
    assert power(0, 10, 512, only_seeds) == pytest.approx(0.05, abs=1e-4)
    assert seeds_needed(0.01, 512, only_seeds) == 10


@pytest.mark.parametrize(("S", "Q", "pairs"), [(5, 512, 1), (10, 512, 3), (5, 2048, 3)])
def test_the_power_is_how_often_a_difference_is_found(S: int, Q: int, pairs: int) -> None:
    """The standard error of a share of 1,000 studies is 1.6 %."""
    rng = np.random.default_rng(S * Q)
    nothing = np.zeros((S, Q))
    found = [
        compare_pair(differences(rng, S, Q, PARTS, 0.03), nothing, pairs).corrected_p_value < 0.05 for _ in range(1000)
    ]
    assert np.mean(found) == pytest.approx(power(0.03, S, Q, PARTS, pairs), abs=0.05)


def test_components_are_estimated_without_bias() -> None:
    rng = np.random.default_rng(0)
    found = [components(differences(rng, 8, 300, PARTS, 0.1)) for _ in range(500)]
    assert np.mean([c.seed for c in found]) == pytest.approx(PARTS.seed, rel=0.1)
    assert np.mean([c.question for c in found]) == pytest.approx(PARTS.question, rel=0.05)
    assert np.mean([c.rest for c in found]) == pytest.approx(PARTS.rest, rel=0.01)


def test_seeds_alone_do_not_find_what_too_few_questions_hide() -> None:
    assert seeds_needed(0.01, 100, PARTS) is None  # the questions' part is 1.4 points, however many seeds there are
    needed = [seeds_needed(0.02, questions, PARTS) for questions in (512, 1319, 4096)]
    assert needed == sorted(needed, key=lambda n: -(n or 1000))
    far_beyond_doubt = [power(points / 100, 3, 4096, PARTS) for points in (2, 4, 8, 16, 32)]
    assert far_beyond_doubt == sorted(far_beyond_doubt)
    assert far_beyond_doubt[-1] == pytest.approx(1)
    assert needed[-1] == next(S for S in range(2, 100) if power(0.02, S, 4096, PARTS) >= 0.8)

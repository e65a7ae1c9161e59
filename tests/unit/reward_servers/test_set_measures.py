"""Measures of sets against closed forms and against other ways to compute them."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from reward_servers.sets.measures import (
    class_divergence,
    frechet_distance,
    inception_score,
    leave_one_out,
    vendi_score,
)

RNG = np.random.default_rng(7)


def test_frechet_distance_is_that_of_the_covariances():
    made, exemplars = RNG.standard_normal((40, 6)) * 2 + 1, RNG.standard_normal((30, 6))
    first, second = np.cov(made.T), np.cov(exemplars.T)
    shift = np.square(made.mean(0) - exemplars.mean(0)).sum()
    expected = shift + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert frechet_distance(made, exemplars) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_few_rows_in_many_dimensions():
    made, exemplars = RNG.standard_normal((5, 300)), RNG.standard_normal((4, 300)) + 0.3
    first, second = np.cov(made.T), np.cov(exemplars.T)
    values = np.linalg.eigvals(first @ second)
    shift = np.square(made.mean(0) - exemplars.mean(0)).sum()
    expected = shift + np.trace(first) + np.trace(second) - 2 * np.sqrt(np.abs(values)).sum()
    assert frechet_distance(made, exemplars) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(made, made) == pytest.approx(0.0, abs=1e-9)


def test_vendi_score_counts_what_differs():
    assert vendi_score(np.eye(5)) == pytest.approx(5.0)
    assert vendi_score(np.ones((5, 3))) == pytest.approx(1.0)
    assert vendi_score(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])) == pytest.approx(2.0)
    # eigenvalues 3/4 and 1/4
    assert vendi_score(np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]])) == pytest.approx(4 / 3**0.75)


def test_inception_score_and_class_divergence_by_hand():
    assert inception_score(np.eye(4)) == pytest.approx(4.0)
    assert inception_score(np.full((3, 4), 0.25)) == pytest.approx(1.0)
    made, wanted = np.array([[0.5, 0.5], [0.1, 0.9]]), np.array([[0.6, 0.4]])
    assert class_divergence(made, wanted) == pytest.approx(0.6 * np.log(0.6 / 0.3) + 0.4 * np.log(0.4 / 0.7))


def test_leave_one_out_is_the_difference_that_a_row_makes():
    rows = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    found = leave_one_out(vendi_score, rows)
    without_twin = np.exp(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)))
    assert found[:3] == pytest.approx([4 / 3**0.75 - without_twin] * 3)
    assert found[3] == pytest.approx(4 / 3**0.75 - 1.0)
    assert found[3] > 0 > found[0]

"""Metrics from ranks by hand; the bootstrap against closed forms and SciPy's."""

import numpy as np
import pytest
import scipy.stats

from recbole_tiger.report import statistics
from recbole_tiger.report.statistics import RESAMPLES, bootstrap_means, interval, metric_per_user, paired_p


def test_metrics_by_hand():
    ranks = np.array([[1, 3, 0], [10, 11, 20]])
    np.testing.assert_allclose(metric_per_user(ranks, "recall@10"), [[1, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(metric_per_user(ranks, "hit@20"), [[1, 1, 0], [1, 1, 1]])
    np.testing.assert_allclose(metric_per_user(ranks, "mrr@10"), [[1, 1 / 3, 0], [0.1, 0, 0]])
    np.testing.assert_allclose(metric_per_user(ranks, "ndcg@10"), [[1, 0.5, 0], [1 / np.log2(11), 0, 0]])


def test_interval_of_a_share_is_binomial():
    values = np.repeat([0.0, 1.0], [960, 40])
    exact = scipy.stats.binom.ppf([0.025, 0.975], 1000, 0.04) / 1000
    np.testing.assert_allclose(interval(values), exact, atol=0.001)


def test_interval_of_many_users_is_normal():
    values = metric_per_user(np.random.default_rng(1).integers(0, 60, 20000), "ndcg@20")
    half = 1.959964 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose(interval(values), [values.mean() - half, values.mean() + half], atol=0.05 * half)


def test_interval_is_that_of_scipy():
    values = metric_per_user(np.random.default_rng(2).integers(0, 40, 300), "mrr@20")
    found = scipy.stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(3))
    width = found.confidence_interval.high - found.confidence_interval.low
    np.testing.assert_allclose(interval(values), found.confidence_interval, atol=0.03 * width)


def test_bootstrap_is_seeded():
    values = np.arange(50.0)
    np.testing.assert_array_equal(bootstrap_means(values), bootstrap_means(values))
    assert not np.array_equal(bootstrap_means(values), bootstrap_means(values, seed=1))


@pytest.mark.parametrize("shift", [0.003, 0.008, 0.015])
def test_p_of_many_users_is_that_of_the_normal_test(shift):
    rng = np.random.default_rng(4)
    first = np.round(rng.normal(0.1, 0.3, 8000), 2)
    second = np.round(first + rng.normal(shift, 0.3, 8000), 2)
    difference = first - second
    expected = 2 * scipy.stats.norm.sf(abs(difference.mean()) / (difference.std() / np.sqrt(8000)))
    assert paired_p(first, second) == pytest.approx(expected, abs=0.015)
    assert paired_p(second, first) == pytest.approx(expected, abs=0.015)


def test_p_of_equal_models_is_one():
    values = np.array([0.0, 0.5, 1.0, 0.25])
    assert paired_p(values, values) == 1
    assert paired_p(values[[0, 1]], values[[1, 0]]) == 1  # no difference in sum


def test_p_of_a_plain_difference():
    assert paired_p(np.ones(200), np.zeros(200) + np.arange(200) % 2 / 10) == 1 / (RESAMPLES + 1)


def test_pairing_sees_what_separate_intervals_do_not():
    rng = np.random.default_rng(5)
    easy = rng.random(3000)
    first, second = np.round(easy, 2), np.round(easy - 0.01 * rng.random(3000), 2)
    assert interval(first)[0] < second.mean()
    assert paired_p(first, second) < 0.001


def test_chance_is_significant_as_often_as_it_should_be():
    rng = np.random.default_rng(6)
    found = [paired_p(*(rng.random((2, 400)) < 0.1).astype(float)) for _ in range(300)]
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.08


def test_blocks_of_the_bootstrap_change_nothing(monkeypatch):
    values = np.random.default_rng(4).random(500)
    monkeypatch.setattr(statistics, "DRAWN", 500 * RESAMPLES)
    whole = bootstrap_means(values)
    monkeypatch.setattr(statistics, "DRAWN", 500 * 700)
    np.testing.assert_allclose(bootstrap_means(values), whole, rtol=1e-12)

"""Uncertainty of metrics: bootstrap over users, for one model or for two models on the same users."""

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
# Counts drawn at once: 32 MB.
DRAWN = 2**22
# The gain of a target at a rank, by metric.
GAINS = {
    "recall": np.ones_like,
    "hit": np.ones_like,
    "ndcg": lambda rank: 1 / np.log2(rank + 1),
    "mrr": lambda rank: 1 / rank,
}

# Ranges of how often a target occurs in training: the largest count of each, and its name.
RANGES = {2: "0-2", 5: "3-5", 10: "6-10", 20: "11-20", 50: "21-50", np.inf: "over 50"}


def range_of(counts):
    """The index in RANGES of each count of an array."""
    return np.searchsorted(list(RANGES), counts)


def has_gain(name):
    """Whether a metric, in RecBole's form (recall@10), follows from the rank of the target by GAINS."""
    return name.partition("@")[0] in GAINS


def metric_per_user(ranks, name):
    """The value of a metric for each user, who has one target.

    Args:
        ranks: int array; 1 is best, 0 is not in the list.
        name: a metric that :func:`has_gain`.

    Returns:
        float array of the same shape.
    """
    metric, _, k = name.partition("@")
    found = (ranks > 0) & (ranks <= int(k))
    return np.where(found, GAINS[metric](np.maximum(ranks, 1).astype(float)), 0.0)


def bootstrap_means(values, seed=0):
    """Means of ``RESAMPLES`` samples of users, drawn with replacement.

    Only how often each distinct value is drawn matters, so these counts are drawn from a multinomial distribution.

    Args:
        values: float array [users].

    Returns:
        float array [RESAMPLES].
    """
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.RandomState(seed)  # its draws are the same in every NumPy; those of a Generator changed with 2.5
    block = max(1, DRAWN // len(distinct))
    sizes = [min(block, RESAMPLES - begin) for begin in range(0, RESAMPLES, block)]
    drawn = (rng.multinomial(len(values), counts / len(values), size=size) for size in sizes)
    return np.concatenate([part @ distinct for part in drawn]) / len(values)


def percentile_interval(means):
    """Percentile bootstrap interval, from the means of the samples.

    Returns:
        low, high: floats.
    """
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interval(values):
    """Percentile bootstrap interval of the mean over users: low, high."""
    return percentile_interval(bootstrap_means(values))


def paired_p(first, second):
    """Two-sided p-value of a paired bootstrap: how often two models differ as much by chance alone.

    Args:
        first, second: float arrays [users], of the same users in the same order.
    """
    difference = first - second
    shifted = bootstrap_means(difference) - difference.mean()
    # bootstrap_means sums in another order than mean, so equal differences may differ by rounding.
    extreme = np.abs(shifted) >= abs(difference.mean()) * (1 - 1e-9)
    return float((extreme.sum() + 1) / (RESAMPLES + 1))

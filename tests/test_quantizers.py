"""A contract that every quantizer keeps, and what is particular to each."""

import numpy as np
import pytest
import scipy.stats
import torch

from recbole_tiger.catalogue.catalogue import check_codebooks
from recbole_tiger.catalogue.quantizers import QUANTIZERS, make_quantizer, quantizer_settings
from recbole_tiger.catalogue.quantizers.kmeans import assign, kmeans, means, seed_centroids
from recbole_tiger.catalogue.quantizers.rq_vae import Network, standardised
from recbole_tiger.catalogue.semantic_ids import SemanticIDs, add_collision_level
from recbole_tiger.errors import TigerError
from recbole_tiger.settings.properties import defaults_of


class Settings(dict):
    """Settings as a Config gives them: None where absent."""

    def __missing__(self, key):
        return None


def config_of(name, **changes):
    quick = {"rq_vae_steps": 300, "rq_vae_warmup_steps": 60, "rq_vae_batch_size": 128, "rq_vae_hidden_sizes": [64, 32]}
    return Settings({**defaults_of("TIGER"), **quick, "quantizer": name, "codebook_size": 16, **changes})


@pytest.fixture(scope="module")
def clustered():
    """400 points around 8 centres far apart, each centre with 4 sub-centres near it."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(8, 24, generator=generator) * 10
    sub_centres = torch.randn(4, 24, generator=generator) * 2
    which, sub = torch.arange(400) % 8, (torch.arange(400) // 8) % 4
    return centres[which] + sub_centres[sub] + torch.randn(400, 24, generator=generator) * 0.3, which


@pytest.fixture(params=sorted(QUANTIZERS))
def name(request):
    return request.param


class TestContract:
    """What :mod:`recbole_tiger.catalogue.quantizers` promises of every quantizer."""

    def test_shape_and_range(self, name, clustered):
        for depth in (1, 3):
            codes = make_quantizer(config_of(name, codebook_depth=depth)).fit(clustered[0], seed=1)
            assert codes.shape == (400, depth)
            assert codes.dtype == torch.int64
            assert codes.min() >= 0
            assert codes.max() < 16

    def test_same_seed_same_codes_whatever_the_global_state(self, name, clustered):
        torch.manual_seed(5)
        first = make_quantizer(config_of(name)).fit(clustered[0], seed=1)
        torch.manual_seed(6)
        state = torch.get_rng_state()
        assert torch.equal(make_quantizer(config_of(name)).fit(clustered[0], seed=1), first)
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(make_quantizer(config_of(name)).fit(clustered[0], seed=2), first)

    def test_codes_are_used_evenly_enough(self, name, clustered):
        codes = make_quantizer(config_of(name)).fit(clustered[0], seed=1)
        ids = SemanticIDs([f"i{i}" for i in range(400)], add_collision_level(codes.numpy()))
        check_codebooks(ids.statistics(), 16, name)


class TestLearned:
    """What the codes of a quantizer that learns mean."""

    @pytest.fixture(params=["rq_kmeans", "rq_vae"])
    def name(self, request):
        return request.param

    def test_first_level_keeps_far_clusters_apart(self, name, clustered):
        x, which = clustered
        first = make_quantizer(config_of(name)).fit(x, seed=1)[:, 0]
        for code in first.unique():
            assert len(which[first == code].unique()) == 1

    def test_most_codes_are_used(self, name, clustered):
        codes = make_quantizer(config_of(name)).fit(clustered[0], seed=1)
        assert all(len(level.unique()) >= 12 for level in codes.T)

    def test_near_items_share_longer_prefixes(self, name, clustered):
        x, which = clustered
        codes = make_quantizer(config_of(name)).fit(x, seed=1)
        same = (codes[:, None] == codes[None]).long().cumprod(dim=2).sum(dim=2).float()
        together = which[:, None] == which[None]
        assert same[together].mean() > 4 * same[~together].mean()


def test_lsh_bits_are_sides_of_hyperplanes(clustered):
    """By the property that makes it a hash of the direction: the share of bits in which two items differ is their angle."""
    x = clustered[0] - clustered[0].mean(dim=0)
    codes = make_quantizer(config_of("lsh", codebook_depth=400)).fit(clustered[0] * 3 + 7, seed=1)
    assert codes.max() == 15
    differ = codes[0] ^ codes[1:30]
    share = sum((differ >> bit & 1).float().mean(dim=1) for bit in range(4)) / 4
    angle = torch.cosine_similarity(x[:1], x[1:30]).arccos() / torch.pi
    torch.testing.assert_close(share, angle, atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [100, 255])
def test_lsh_needs_a_power_of_two(size):
    with pytest.raises(TigerError, match=f"codebook_size {size} is not a power of two"):
        make_quantizer(config_of("lsh", codebook_size=size))


def test_random_codes_are_uniform_and_mean_nothing(clustered):
    codes = make_quantizer(config_of("random", codebook_depth=50)).fit(clustered[0], seed=1)
    assert scipy.stats.chisquare(np.bincount(codes.flatten(), minlength=16)).pvalue > 0.001
    again = make_quantizer(config_of("random", codebook_depth=50)).fit(torch.zeros(400, 2), seed=1)
    assert torch.equal(codes, again)


def test_settings_of_a_quantizer_are_those_of_its_constructor():
    assert quantizer_settings(config_of("rq_kmeans")) == {
        "codebook_size": 16,
        "codebook_depth": 3,
        "kmeans_iterations": 30,
        "kmeans_sample": 131072,
    }


@pytest.mark.parametrize(("quantizer", "other"), [("rq_vae", "rq_kmeans"), ("rq_kmeans", "rq_vae"), ("lsh", "rq_kmeans")])
def test_collapse_is_an_error_with_advice(quantizer, other):
    codes = add_collision_level(np.zeros((50, 2), dtype=np.int64))
    statistics = SemanticIDs([str(i) for i in range(50)], codes).statistics()
    with pytest.raises(TigerError, match=rf"codebook 1 has collapsed: 1 of 16 .* try --quantizer={other}"):
        check_codebooks(statistics, 16, quantizer)


def test_one_kmeans_step_equals_brute_force():
    rng = np.random.default_rng(0)
    x, centroids = rng.normal(size=(50, 5)), rng.normal(size=(4, 5))
    distances = np.array([[((row - centroid) ** 2).sum() for centroid in centroids] for row in x])
    labels, nearest = assign(torch.from_numpy(x), torch.from_numpy(centroids))
    assert labels.tolist() == distances.argmin(axis=1).tolist()
    np.testing.assert_allclose(nearest.numpy(), distances.min(axis=1))
    moved, counts = means(torch.from_numpy(x).float(), labels, 4)
    for k in range(4):
        np.testing.assert_allclose(moved[k].numpy(), x[distances.argmin(axis=1) == k].mean(axis=0), atol=1e-6)
        assert counts[k] == (distances.argmin(axis=1) == k).sum()


def test_kmeans_never_gets_worse_and_leaves_no_centroid_unused():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))

    def loss(iterations):
        centroids = kmeans(x, 20, iterations=iterations, generator=torch.Generator().manual_seed(2))
        labels, distances = assign(x, centroids)
        assert len(labels.unique()) == 20
        return distances.sum().item()

    losses = [loss(iterations) for iterations in (1, 3, 10, 30)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_kmeans_seeds_are_distinct_rows_and_spread():
    x = torch.cat([torch.zeros(1000, 2), torch.full((1, 2), 50.0), torch.full((1, 2), -50.0)])
    seeds = seed_centroids(x, 3, torch.Generator().manual_seed(0))
    assert sorted(seeds[:, 0].tolist()) == [-50.0, 0.0, 50.0]


@pytest.mark.parametrize("warmup", [40, 57, 79])
def test_rq_vae_restarts_the_codes_that_a_whole_epoch_did_not_use(warmup, clustered, monkeypatch):
    """Wherever in an epoch the warm-up ends: few batches use few codes."""
    x = clustered[0]
    steps = {"rq_vae_warmup_steps": warmup, "rq_vae_steps": warmup + 45, "rq_vae_batch_size": 10}
    quantizer = make_quantizer(config_of("rq_vae", **steps))
    found = []
    monkeypatch.setattr(quantizer, "_restart_dead", lambda _, x, used, generator: found.append(used.sum(dim=1).tolist()))
    quantizer.fit(x, seed=1)
    (used,) = found  # after 40 batches, an epoch
    assert min(used) > 10


def test_rq_vae_loss_by_hand():
    torch.manual_seed(0)
    network = Network(dim=6, hidden_sizes=[5], latent_size=3, depth=2, size=4, beta=0.25)
    network.codebooks.data.normal_()
    x = torch.randn(7, 6)
    reconstruction, quantization, codes = network.losses(x)
    z = network.encoder(x).detach().numpy()
    books = network.codebooks.detach().numpy()
    total, chosen = 0.0, []
    for row in z:
        residual, vectors = row.copy(), []
        for book in books:
            nearest = min(range(4), key=lambda k: ((residual - book[k]) ** 2).sum())
            total += (1 + 0.25) * ((residual - book[nearest]) ** 2).sum()
            vectors.append(nearest)
            residual = residual - book[nearest]
        chosen.append(vectors)
    assert codes.tolist() == chosen
    np.testing.assert_allclose(quantization.item(), total / 7, rtol=1e-5)
    quantized = torch.tensor(np.array([sum(books[d][k] for d, k in enumerate(row)) for row in chosen]))
    expected = (x - network.decoder(quantized)).pow(2).sum() / 7
    torch.testing.assert_close(reconstruction, expected)


def test_rq_vae_gradients_go_where_the_paper_sends_them():
    """The straight-through gradient reaches the encoder; the codebooks learn from the quantization loss alone."""
    torch.manual_seed(0)
    network = Network(dim=6, hidden_sizes=[5], latent_size=3, depth=2, size=4, beta=0.0)
    network.codebooks.data.normal_()
    x = torch.randn(7, 6)
    reconstruction, quantization, _ = network.losses(x)
    reconstruction.backward(retain_graph=True)
    assert network.codebooks.grad is None
    assert network.encoder[0].weight.grad.abs().sum() > 0
    network.zero_grad()
    quantization.backward()
    assert network.codebooks.grad.abs().sum() > 0
    assert network.encoder[0].weight.grad is None or network.encoder[0].weight.grad.abs().sum() == 0


@pytest.mark.parametrize("constant", [0.1, 33.3, 2014.7])
def test_standardised(constant):
    """Against NumPy in double precision; a column that is the same for all tells nothing, however large it is."""
    x = np.random.default_rng(0).normal(3, 2, (5000, 3)).astype(np.float32)
    x[:, 1] = constant
    found = standardised(torch.from_numpy(x)).numpy()
    wide = x.astype(float)
    for column in (0, 2):
        expected = (wide[:, column] - wide[:, column].mean()) / wide[:, column].std(ddof=1)
        np.testing.assert_allclose(found[:, column], expected, atol=1e-5)
    assert (found[:, 1] == 0).all()

"""The protocol of all quantizers, and tests of each quantizer."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from recbole_tiger.catalogue.catalogue import check_codebooks, check_sizes, quantize
from recbole_tiger.catalogue.quality import reconstruction_error
from recbole_tiger.catalogue.quantizers import QUANTIZERS, make_quantizer, quantizer_settings
from recbole_tiger.catalogue.quantizers.base import Arbitrary
from recbole_tiger.catalogue.quantizers.kmeans import assign, kmeans, means, seed_centroids
from recbole_tiger.catalogue.quantizers.opq import nearest_rotation
from recbole_tiger.catalogue.quantizers.rq_vae import Network, standardised
from recbole_tiger.catalogue.semantic_ids import SemanticIDs, add_collision_level
from recbole_tiger.errors import TigerError
from recbole_tiger.runs import experiment
from recbole_tiger.settings.properties import defaults_of


class Settings(dict):
    """Settings like a Config: None for missing keys."""

    def __missing__(self, key):
        return None


def config_of(name, **changes):
    quick = {"rq_vae_steps": 300, "rq_vae_warmup_steps": 60, "rq_vae_batch_size": 128, "rq_vae_hidden_sizes": [64, 32]}
    quick |= {"codebook_size": 16, "hierarchical_branches": 4, "hierarchical_leaf_size": 20}
    return Settings({**defaults_of("TIGER"), **quick, "quantizer": name, **changes})


def fitted(name, x, **changes):
    """The fitted quantizer, and the codes of ``x``."""
    quantizer = make_quantizer(config_of(name, **changes))
    return quantizer, quantizer.fit(x, seed=1)


@pytest.fixture(scope="module")
def clustered():
    """400 points around 8 distant centres, each with 4 nearby sub-centres."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(8, 24, generator=generator) * 10
    sub_centres = torch.randn(4, 24, generator=generator) * 2
    which, sub = torch.arange(400) % 8, (torch.arange(400) // 8) % 4
    return centres[which] + sub_centres[sub] + torch.randn(400, 24, generator=generator) * 0.3, which


@pytest.fixture(params=sorted(QUANTIZERS))
def name(request):
    return request.param


class TestProtocol:
    """The protocol of :mod:`recbole_tiger.catalogue.quantizers`, for every quantizer."""

    def test_shape_and_range(self, name, clustered):
        for depth in (1, 3):
            quantizer, codes = fitted(name, clustered[0], codebook_depth=depth)
            assert codes.shape == (400, len(quantizer.widths))
            assert codes.dtype == torch.int64
            assert codes.min() >= 0
            assert (codes < torch.tensor(quantizer.widths)).all()
            if "codebook_depth" in quantizer_settings(config_of(name)):
                assert quantizer.widths == [16] * depth

    def test_same_seed_same_codes_whatever_the_global_state(self, name, clustered):
        torch.manual_seed(5)
        first = make_quantizer(config_of(name)).fit(clustered[0], seed=1)
        torch.manual_seed(6)
        state = torch.get_rng_state()
        assert torch.equal(make_quantizer(config_of(name)).fit(clustered[0], seed=1), first)
        assert torch.equal(torch.get_rng_state(), state)
        other = make_quantizer(config_of(name))
        assert torch.equal(other.fit(clustered[0], seed=2), first) == (name == "atomic")

    def test_codes_are_used_evenly_enough(self, name, clustered):
        quantizer, codes = fitted(name, clustered[0])
        ids = SemanticIDs([f"i{i}" for i in range(400)], add_collision_level(codes.numpy()))
        check_codebooks(ids.statistics(), quantizer)

    def test_distinct_means_that_no_two_items_share_all_codes(self, name, clustered):
        quantizer, codes = fitted(name, clustered[0][:101])
        assert quantizer.distinct in (False, len(codes.unique(dim=0)) == 101)

    def test_encodes_what_it_was_fitted_on_as_it_did_then(self, name, clustered, monkeypatch):
        x = clustered[0]
        quantizer, codes = fitted(name, x)
        if isinstance(quantizer, Arbitrary):
            with pytest.raises(TigerError, match=r"do not depend on the embeddings.*train anew"):
                quantizer.encode(x)
            return
        state = torch.get_rng_state()
        assert torch.equal(quantizer.encode(x), codes)
        assert torch.equal(torch.get_rng_state(), state)
        some = torch.arange(399, 0, -3)
        assert torch.equal(quantizer.encode(x[some]), codes[some])
        monkeypatch.setattr(quantizer, "_chunk", lambda dim: 7)
        assert torch.equal(quantizer.encode(x), codes)
        with pytest.raises(TigerError, match=r"width 20 do not fit .* width 24; .* same text encoder"):
            quantizer.encode(x[:, :20])

    def test_what_it_learnt_restores_it(self, name, clustered, tmp_path):
        x = clustered[0]
        quantizer, codes = fitted(name, x)
        np.savez(tmp_path / "learnt.npz", **{key: tensor.numpy() for key, tensor in quantizer.learnt.items()})
        again = make_quantizer(config_of(name))
        assert again.learnt == {}
        with np.load(tmp_path / "learnt.npz", allow_pickle=False) as file:
            again.learnt = {key: torch.from_numpy(array) for key, array in file.items()}
        assert again.widths == quantizer.widths
        if not isinstance(quantizer, Arbitrary):
            assert torch.equal(again.encode(x), codes)
        if quantizer.reconstruct:
            assert torch.equal(again.reconstruct(codes), quantizer.reconstruct(codes))

    def test_reconstructs_better_with_more_codes(self, name, clustered):
        x = clustered[0].clone()
        x[:, 5] = 7.7  # a constant dimension is reconstructed; the others have a standard deviation of about ten
        coarse, codes = fitted(name, x, codebook_size=4, hierarchical_leaf_size=200)
        if not coarse.reconstruct:
            return
        assert coarse.reconstruct(codes).dtype == x.dtype
        fine, fine_codes = fitted(name, x)
        assert reconstruction_error(fine, fine_codes, x) < reconstruction_error(coarse, codes, x) < 0.9
        torch.testing.assert_close(fine.reconstruct(fine_codes)[:, 5], x[:, 5], atol=0.1, rtol=0)

    def test_fitted_on_a_sample_in_parts(self, name, clustered, monkeypatch):
        """As for a large catalogue."""
        monkeypatch.setattr("recbole_tiger.catalogue.quantizers.kmeans.CHUNK", 7)
        monkeypatch.setattr("recbole_tiger.catalogue.quantizers.kmeans.CACHED", 7)
        quantizer, codes = fitted(name, clustered[0], kmeans_sample=100)
        if not isinstance(quantizer, Arbitrary):
            assert torch.equal(quantizer.encode(clustered[0]), codes)
        if quantizer.reconstruct:
            assert reconstruction_error(quantizer, codes, clustered[0]) < 0.1

    def test_cached_until_its_own_revision_changes(self, name, clustered, tmp_path, monkeypatch):
        items, x = [f"i{i}" for i in range(400)], clustered[0].numpy()
        other = "random" if name == "lsh" else "lsh"

        def cached():
            settings = {"cache_dir": tmp_path, "device": "cpu", "seed": 1, "show_progress": False}
            found, _ = [quantize(config_of(one, **settings), items, x) for one in (name, other)]
            return found, {path: path.read_bytes() for path in Path(tmp_path).iterdir()}

        (made, _), first = cached()
        assert len(first) == 2
        (read, quantizer), again = cached()
        assert again == first
        assert np.array_equal(read.codes, made.codes)
        if not isinstance(quantizer, Arbitrary):
            assert np.array_equal(quantizer.encode(clustered[0]).numpy(), made.codes[:, :-1])
        monkeypatch.setattr(QUANTIZERS[name], "REVISION", 99)
        assert len(cached()[1]) == 3


def test_a_cached_quantizer_cut_short(clustered, tmp_path):
    items, x = [f"i{i}" for i in range(400)], clustered[0].numpy()
    config = config_of("rq_kmeans", cache_dir=tmp_path, device="cpu", seed=1, show_progress=False)
    made, _ = quantize(config, items, x)
    (file,) = tmp_path.glob("*.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TigerError, match=rf"{file.name} is cut short .* delete it"):
        quantize(config, items, x)
    file.unlink()
    cached, _ = quantize(config, items, x)
    assert np.array_equal(cached.codes, made.codes)
    other, _ = quantize(config, items, x[::-1].copy())
    assert not np.array_equal(other.codes, made.codes)
    assert len(list(tmp_path.glob("*.npz"))) == 2


class TestLearned:
    """Codes of the quantizers that learn from the embeddings reflect their similarity."""

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
    """The share of bits in which two items differ is proportional to their angle."""
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

    assert "codebook_depth" not in quantizer_settings(config_of("vq"))
    assert set(quantizer_settings(config_of("rq_vae"))) - set(quantizer_settings(config_of("vq"))) == {"codebook_depth"}
    assert quantizer_settings(config_of("atomic")) == {}


def statistics_of(codes):
    return SemanticIDs([str(i) for i in range(len(codes))], add_collision_level(np.array(codes))).statistics()


@pytest.mark.parametrize(
    ("name", "other"),
    [("rq_vae", "rq_kmeans"), ("rq_kmeans", "rq_vae"), ("lsh", "rq_kmeans"), ("vq", "rq_kmeans"), ("opq", "rq_kmeans")],
)
def test_collapse_is_an_error_with_advice(name, other):
    quantizer = make_quantizer(config_of(name, codebook_depth=2))
    message = rf"codebook 1 has collapsed: 1 of 16 .* try --quantizer={other}, a smaller codebook_size, or"
    with pytest.raises(TigerError, match=message):
        check_codebooks(statistics_of(np.zeros((50, len(quantizer.widths)), dtype=np.int64)), quantizer)


def test_a_product_quantizer_has_no_level_that_may_collapse():
    """Residual levels may collapse once items are distinct; each level of a product has its own slice of the embedding."""
    codes = [(i % 16, i // 16, 0) for i in range(50)]
    check_codebooks(statistics_of(codes), make_quantizer(config_of("rq_kmeans")))
    with pytest.raises(TigerError, match="codebook 3 has collapsed: 1 of 16"):
        check_codebooks(statistics_of(codes), make_quantizer(config_of("opq")))


def test_padding_of_a_tree_is_no_collapse():
    quantizer = make_quantizer(config_of("hierarchical_kmeans"))
    quantizer.learnt = {"depth": torch.tensor(2)}
    check_codebooks(statistics_of([(i % 4, int(i == 0)) for i in range(50)]), quantizer)
    with pytest.raises(TigerError, match=r"codebook 1 .* 1 of 4 .* try --quantizer=rq_kmeans, or check that the item texts"):
        check_codebooks(statistics_of([(0, 0)] * 50), quantizer)


def test_a_tree_with_more_branches_than_items_is_no_collapse():
    quantizer = make_quantizer(config_of("hierarchical_kmeans", hierarchical_branches=256))
    quantizer.learnt = {"depth": torch.tensor(1)}
    check_codebooks(statistics_of([(i,) for i in range(20)]), quantizer)


def test_a_codebook_larger_than_the_catalogue_matters_to_those_that_read_its_size(name):
    config = config_of(name, beam_size=5)
    check_sizes(config, 16)
    if "codebook_size" in quantizer_settings(config):
        with pytest.raises(TigerError, match="codebook_size 16 is larger than the catalogue of 15 items"):
            check_sizes(config, 15)
    else:
        check_sizes(config, 15)


def test_atomic_and_string_codes_by_hand():
    x = torch.zeros(101, 2)
    assert fitted("atomic", x)[1].tolist() == [[i] for i in range(101)]
    quantizer, codes = fitted("string", x)
    numbers = ["".join(map(str, row)) for row in codes.tolist()]
    assert sorted(numbers) == [f"{i:03d}" for i in range(101)]
    assert sum(one[:2] == other[:2] for one, other in pairwise(numbers)) < 30  # of 90 in the order of the items
    assert quantizer.widths == [10, 10, 10]
    assert fitted("string", x[:100])[0].widths == [10, 10]


def check_by_recursion(x, codes, leaf_size, branches):
    """Check DSI's rule in plain loops, and that every member is nearest to the mean of its own cluster."""
    if len(codes[0]) == 0:
        return
    clusters = {}
    for row, (code, *rest) in zip(x, codes, strict=True):
        clusters.setdefault(code, []).append((row, rest))
    assert len(clusters) <= branches
    centres = {code: np.mean([row for row, _ in members], axis=0) for code, members in clusters.items()}
    for code, members in clusters.items():
        for row, _ in members:
            distances = {other: ((row - centre) ** 2).sum() for other, centre in centres.items()}
            assert distances[code] <= min(distances.values()) + 1e-4
        if len(members) > leaf_size:
            assert len({rest[0] for _, rest in members}) > 1  # split again
            check_by_recursion([row for row, _ in members], [rest for _, rest in members], leaf_size, branches)
        else:
            assert all(not any(rest) for _, rest in members)  # padded


def test_hierarchical_kmeans_equals_plain_recursion():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * 3 + 5
    x[:300] *= 0.05  # dense, so that branches end at different depths
    quantizer, codes = fitted("hierarchical_kmeans", x, kmeans_iterations=200)
    assert codes.shape[1] >= 3
    assert (codes[:, -1] == 0).float().mean() > 0.4
    check_by_recursion(x.numpy(), codes.tolist(), 20, 4)
    # The reconstruction is the mean of the members of a cluster.
    given = quantizer.reconstruct(codes)
    for code in codes.unique(dim=0):
        members = (codes == code).all(dim=1)
        torch.testing.assert_close(given[members][0], x[members].mean(dim=0), atol=1e-4, rtol=0)


def test_hierarchical_kmeans_ends_at_equal_embeddings():
    x = torch.randn(300, 24, generator=torch.Generator().manual_seed(0))
    x[50:] = x[0]
    codes = fitted("hierarchical_kmeans", x)[1]
    assert len(codes[50:].unique(dim=0)) == 1
    assert codes.shape[1] <= 4
    assert fitted("hierarchical_kmeans", torch.full((300, 24), 0.1))[1].tolist() == [[0]] * 300
    assert len(fitted("hierarchical_kmeans", x[:3])[1].unique(dim=0)) == 3  # fewer items than branches


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"hierarchical_branches": 1}, "hierarchical_branches 1 splits nothing; give 2 or more"),
        ({"kmeans_sample": 3}, "kmeans_sample 3 is less than hierarchical_branches 4"),
    ],
)
def test_hierarchical_kmeans_refuses(change, part):
    with pytest.raises(TigerError, match=part):
        make_quantizer(config_of("hierarchical_kmeans", **change))


def test_opq_assigns_as_brute_force_does(clustered):
    x = clustered[0]
    quantizer, codes = fitted("opq", x)
    mean, rotation, books = (quantizer.learnt[name].double().numpy() for name in ("mean", "rotation", "codebooks"))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(24), atol=1e-5)
    assert books.shape == (3, 16, 8)
    for row, code, given in zip(x.double().numpy(), codes.tolist(), quantizer.reconstruct(codes).numpy(), strict=True):
        rotated, vector = (row - mean) @ rotation, []
        for level in range(3):
            part = rotated[8 * level : 8 * level + 8]
            distances = [((part - centroid) ** 2).sum() for centroid in books[level]]
            assert distances[code[level]] <= min(distances) + 1e-3
            vector.extend(books[level][code[level]])
        np.testing.assert_allclose(given, rotation @ vector + mean, atol=1e-4)


def test_nearest_rotation():
    """A planted rotation is found; for noise, no orthogonal matrix close to the solution is better."""
    generator = torch.Generator().manual_seed(0)
    x, turn = torch.randn(100, 5, generator=generator), torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    torch.testing.assert_close(nearest_rotation(x, x @ turn), turn, atol=1e-5, rtol=0)
    y = torch.randn(100, 5, generator=generator)
    best = nearest_rotation(x, y)
    for _ in range(20):
        skew = torch.randn(5, 5, generator=generator)
        away = torch.linalg.matrix_exp(0.05 * (skew - skew.T))
        assert (x @ best @ away - y).norm() > (x @ best - y).norm()


def test_opq_finds_a_planted_product():
    """The data are two independent choices among four points each, mixed by a rotation."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 4, generator=generator) * 3 for _ in range(2))
    which = torch.randint(4, (600, 2), generator=generator)
    planted = torch.cat([first[which[:, 0]], second[which[:, 1]]], dim=1)
    mixed = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    x = planted @ mixed + 0.02 * torch.randn(600, 8, generator=generator) + 1
    quantizer, codes = fitted("opq", x, codebook_depth=2, codebook_size=4)
    assert reconstruction_error(quantizer, codes, x) < 0.001
    found = {(int((codes[which[:, level] == code]).unique(dim=0).shape[0])) for level in range(2) for code in range(4)}
    assert found == {4}  # each code determines one choice and not the other


def test_opq_refuses_slices_of_unequal_width(clustered):
    with pytest.raises(
        TigerError, match=r"of width 24, into codebook_depth 5 slices .* choose a codebook_depth that divides 24"
    ):
        fitted("opq", clustered[0], codebook_depth=5)


def test_opq_refuses_the_width_of_an_encoder_before_the_texts_are_encoded(settings):
    settings |= {"item_embeddings": None, "quantizer": "opq", "codebook_depth": 5, "text_fields": ["title"]}
    with pytest.raises(TigerError, match=r"of width 384, into codebook_depth 5 slices"):
        experiment.load(experiment.prepare("TIGER", "tiny", settings))
    assert not list(Path(settings["cache_dir"]).glob("*"))


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
    """Used codes are counted over a whole epoch, even if the warm-up ends within one: a few batches use few codes."""
    x = clustered[0]
    steps = {"rq_vae_warmup_steps": warmup, "rq_vae_steps": warmup + 45, "rq_vae_batch_size": 10}
    quantizer = make_quantizer(config_of("rq_vae", **steps))
    found = []
    monkeypatch.setattr(quantizer, "_restart_dead", lambda _, x, used, generator: found.append(used.sum(dim=1).tolist()))
    quantizer.fit(x, seed=1)
    (used,) = found  # counted after an epoch of 40 batches
    assert min(used) > 10


def test_rq_vae_restarts_dead_codes_at_residuals_of_their_level():
    torch.manual_seed(0)
    quantizer = make_quantizer(config_of("rq_vae", codebook_size=4, codebook_depth=2))
    network = Network(dim=6, hidden_sizes=[5], latent_size=3, depth=2, size=4, beta=0.25)
    torch.nn.init.normal_(network.codebooks)
    x, before = torch.randn(40, 6), network.codebooks.detach().clone()
    used = torch.tensor([[True, False, True, False], [True, True, True, False]])
    _, residuals = network.quantize(network.encoder(x))
    quantizer._restart_dead(network, x, used, torch.Generator().manual_seed(0))
    assert torch.equal(network.codebooks[used], before[used])
    for level, residual in enumerate(residuals):
        restarted = network.codebooks[level][~used[level]]
        assert torch.isclose(restarted[:, None], residual).all(dim=-1).any(dim=1).all()
        assert len(restarted.unique(dim=0)) == len(restarted)


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
    """The straight-through gradient reaches the encoder; the codebooks learn from the quantization loss only."""
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


def test_a_single_item_is_standardised_to_zeros():
    assert standardised(torch.tensor([[3.0, 0.0, -7.5]])).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("constant", [0.1, 33.3, 2014.7])
def test_standardised(constant):
    """The result equals NumPy's in double precision; a constant column becomes 0, even if it is large."""
    x = np.random.default_rng(0).normal(3, 2, (5000, 3)).astype(np.float32)
    x[:, 1] = constant
    found = standardised(torch.from_numpy(x)).numpy()
    wide = x.astype(float)
    for column in (0, 2):
        expected = (wide[:, column] - wide[:, column].mean()) / wide[:, column].std(ddof=1)
        np.testing.assert_allclose(found[:, column], expected, atol=1e-5)
    assert (found[:, 1] == 0).all()

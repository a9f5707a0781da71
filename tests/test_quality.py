"""How much of the embeddings the codes keep, against plain loops."""

import re

import numpy as np
import pytest
import torch

from recbole_tiger.catalogue import quality
from recbole_tiger.catalogue.quality import neighbour_shares, reconstruction_error
from recbole_tiger.catalogue.quantizers.rq_kmeans import RQKMeans
from recbole_tiger.cli import main


def shares_in_loops(codes, x, queries, count=10):
    """Mean over the queries of the share of their nearest items with the same first codes."""
    found = []
    for i in queries:
        cosine = {j: x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for j in range(len(x)) if j != i}
        nearest = sorted(cosine, key=cosine.get)[-count:]
        found.append([np.mean([(codes[i][:n] == codes[j][:n]) for j in nearest]) for n in (1, 2)])
    return np.mean(found, axis=0)


@pytest.fixture
def table():
    """Codes [80, 3] that have to do with the embeddings [80, 6]."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6))
    codes = np.column_stack([x[:, 0] > 0, x[:, 1] > 0, rng.integers(0, 5, 80)]).astype(int)
    return codes, x


def test_neighbour_shares_equal_plain_loops(table, monkeypatch):
    codes, x = table
    expected = shares_in_loops(codes.tolist(), x, range(80))
    assert 0.2 < expected[1] < expected[0] < 1
    for numbers in (quality.NUMBERS, 80 * 7, 1):  # queries at once: all, 7, 1
        monkeypatch.setattr(quality, "NUMBERS", numbers)
        found = neighbour_shares(torch.from_numpy(codes), torch.from_numpy(x), seed=1)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_neighbour_shares_of_drawn_items(table, monkeypatch):
    codes, x = table
    monkeypatch.setattr(quality, "QUERIES", 30)
    drawn = torch.randperm(80, generator=torch.Generator().manual_seed(4))[:30].tolist()
    found = neighbour_shares(torch.from_numpy(codes), torch.from_numpy(x), seed=4)
    np.testing.assert_allclose(found, shares_in_loops(codes.tolist(), x, drawn), rtol=1e-6)


def test_neighbour_shares_of_few_items_and_of_one_level(table):
    codes, x = (torch.from_numpy(array) for array in table)
    np.testing.assert_allclose(
        neighbour_shares(codes[:4], x[:4], seed=1),
        shares_in_loops(table[0][:4].tolist(), table[1][:4], range(4), 3),
        rtol=1e-6,
    )
    assert neighbour_shares(codes[:, :1], x, seed=1) == neighbour_shares(codes, x, seed=1)[:1]
    assert neighbour_shares(codes[:1], x[:1], seed=1) == [0, 0]


def test_reconstruction_error_equals_numpy(table, monkeypatch):
    x = torch.from_numpy(table[1]).float()
    quantizer = RQKMeans(codebook_size=4, codebook_depth=2, kmeans_iterations=20, kmeans_sample=1000)
    codes = quantizer.fit(x, seed=0)
    mean, books = quantizer.learnt["mean"].numpy(), quantizer.learnt["codebooks"].numpy()
    given = np.array([mean + books[0][a] + books[1][b] for a, b in codes.tolist()])
    expected = ((x.numpy() - given) ** 2).sum() / ((x.numpy() - x.numpy().mean(axis=0)) ** 2).sum()
    for numbers in (quality.NUMBERS, 6 * 11):
        monkeypatch.setattr(quality, "NUMBERS", numbers)
        np.testing.assert_allclose(reconstruction_error(quantizer, codes, x), expected, rtol=1e-5)


def test_tokenize_tells_what_the_codes_keep(settings, data_path, capsys, monkeypatch):
    def told(**more):
        assert (
            main(["tokenize", "--dataset=tiny", *(f"--{key}={value}" for key, value in {**settings, **more}.items())]) == 0
        )
        shown = capsys.readouterr().out
        names = ("neighbours_share_code_1", "neighbours_share_codes_1_2", "reconstruction_error")
        found = [re.search(rf"^{name} +([\d.]+)  (.*)$", shown, flags=re.MULTILINE) for name in names]
        return shown, [match and float(match[1]) for match in found]

    shown, (first, second, error) = told(codebook_size=4)
    assert 0 < second < first <= 1
    assert 0 < error < 1
    assert told(codebook_size=4) == (shown, [first, second, error])  # cached, and the quantizer with it
    made = {"quantizer": "random", "output": "ids.tsv"}
    _, (first, second, error) = told(**made)
    assert error is None
    # IDs from a file, with the user's own embeddings beside them.
    assert told(semantic_ids="ids.tsv")[1] == [first, second, None]
    assert told(semantic_ids="ids.tsv", model="VQRec-text", quantizer="opq")[1] == [first, second, None]
    del settings["item_embeddings"]
    assert told(semantic_ids="ids.tsv")[1] == [None, None, None]
    monkeypatch.setattr(quality, "QUERIES", 50)
    settings["item_embeddings"] = data_path / "tiny" / "embeddings.npz"
    assert "of the 10 nearest items by cosine, for 50 drawn items" in told()[0]

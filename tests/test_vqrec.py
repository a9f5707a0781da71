"""VQRec: losses and scores equal plain loops; permutations, mixtures of datasets, pre-training and fine-tuning."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_trainer
from scipy.stats import kstest

from recbole_tiger import Recommender
from recbole_tiger.catalogue.item_text import read_item_text
from recbole_tiger.catalogue.quantizers.opq import OPQ
from recbole_tiger.catalogue.semantic_ids import SemanticIDs, add_collision_level
from recbole_tiger.catalogue.tokenizer import Tokenizer
from recbole_tiger.cli import main
from recbole_tiger.errors import TigerError
from recbole_tiger.files import locked
from recbole_tiger.model.vqrec import MeanOfRows, VQRec, gumbel_like, log_sinkhorn
from recbole_tiger.report.results import read_results
from recbole_tiger.runs import experiment
from recbole_tiger.training.checkpoint import load_checkpoint
from recbole_tiger.training.dataset import target_positions
from recbole_tiger.training.trainer import WindowTrainer
from recbole_tiger.training.vqrec import VQRecTrainer
from tests.conftest import small_settings, write_dataset

SETTINGS = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "NEG_PREFIX": "neg_",
    "MAX_ITEM_LIST_LENGTH": 6,
    "device": torch.device("cpu"),
    "codebook_size": 8,
    "hidden_size": 12,
    "inner_size": 16,
    "n_layers": 1,
    "n_heads": 2,
    "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.5,
    "temperature": 0.2,
    "history_bias": False,
    "text_initializer": False,
    "train_stage": "finetune",
    "pre_model_path": None,
    "redraw_prob": 0.75,
    "sinkhorn_temperature": 0.7,
    "sinkhorn_iterations": 3,
}


def small_model(codes=None, seed=0, tokenizer=None, **changes):
    """A VQRec with random weights and a catalogue of the given codes, by default 30 items of 4 random digits."""
    if codes is None:
        codes = np.random.default_rng(seed).integers(0, 8, size=(30, 4))
    items = [f"i{i}" for i in range(len(codes))]
    catalogue = SimpleNamespace(
        items=items,
        titles=items,
        semantic_ids=SemanticIDs(items, add_collision_level(np.asarray(codes))),
        tokenizer=tokenizer,
        columns={},
    )
    dataset = SimpleNamespace(catalogue=catalogue, num=lambda field: len(items) + 1)
    torch.manual_seed(seed)
    model = VQRec({**SETTINGS, **changes}, dataset).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.1)
    return model


def rows(histories, targets=None):
    """RecBole's rows from lists of items."""
    width = SETTINGS["MAX_ITEM_LIST_LENGTH"]
    return {
        "item_id_list": torch.tensor([history + [0] * (width - len(history)) for history in histories]),
        "item_length": torch.tensor([len(history) for history in histories]),
        "item_id": torch.tensor(targets or [1] * len(histories)),
    }


HISTORIES, TARGETS = [[3, 1, 4, 11], [5], [9, 2, 6, 5, 3, 30], [7, 7]], [9, 2, 9, 30]


# --- a reference implementation ---


def item_vector(model, codes):
    """The mean of the embeddings of an item's digits, each from its own table."""
    size = model.code_embedding.shape[1]
    table = {}
    for digit, code in enumerate(codes):
        row = int(model.row_of_code[digit * size + code])
        table[digit] = model.code_embedding[row // size, row % size]
    return sum(table.values()) / len(table)


def attend(layer, x):
    """RecBole's attention layer with a causal mask, for a list of vectors."""
    attention = layer.multi_head_attention
    heads, size = attention.num_attention_heads, attention.attention_head_size
    outputs = []
    for q, vector in enumerate(x):
        mixed = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            query = attention.query(vector)[part]
            scores = torch.stack([query @ attention.key(key)[part] / math.sqrt(size) for key in x[: q + 1]])
            weights = scores.exp() / scores.exp().sum()
            mixed.append(sum(w * attention.value(value)[part] for w, value in zip(weights, x[: q + 1], strict=True)))
        outputs.append(attention.LayerNorm(attention.dense(torch.cat(mixed)) + vector))
    return outputs


def history_vector(model, history):
    """The encoder's output at the last item of a history, as a unit vector."""
    x = [
        model.LayerNorm(item_vector(model, model.digits[item].tolist()) + model.position_embedding.weight[place])
        for place, item in enumerate(history)
    ]
    for layer in model.trm_encoder.layer:
        x = [layer.feed_forward(vector) for vector in attend(layer, x)]
    return x[-1] / x[-1].norm()


def score(model, history, codes):
    """Cosine of a history and an item with the given codes, divided by the temperature."""
    vector = item_vector(model, codes)
    return (history_vector(model, history) @ (vector / vector.norm()) / model.temperature).item()


# --- losses and scores ---


@torch.no_grad()
def test_fine_tuning_loss_by_hand():
    model = small_model().train()
    losses = []
    for history, target in zip(HISTORIES, TARGETS, strict=True):
        scores = {item: score(model, history, model.digits[item].tolist()) for item in range(1, 31)}
        losses.append(math.log(sum(math.exp(value) for value in scores.values())) - scores[target])
    assert model.calculate_loss(rows(HISTORIES, TARGETS)).item() == pytest.approx(sum(losses) / 4, abs=1e-5)


def test_gradient_of_means_of_rows():
    torch.manual_seed(0)
    table, rows, weights = torch.randn(30, 5, dtype=torch.double), torch.randint(20, (40, 3)), torch.randn(40, 5)
    table.requires_grad = True  # no item has the last ten rows
    expected, found = (
        torch.autograd.grad((means * weights).sum(), table)[0]
        for means in (table[rows].mean(dim=1), MeanOfRows.apply(table, rows))
    )
    torch.testing.assert_close(found, expected)
    assert (found[20:] == 0).all() and (found[:20] != 0).any()


@torch.no_grad()
@pytest.mark.parametrize("n_targets", [[1, 1, 1, 1], [3, 1, 4, 1]], ids=["rows", "windows"])
def test_pretraining_loss_by_hand(n_targets, monkeypatch):
    """Two windows have the same target, and the synthetic item of the last target equals it."""
    model = small_model(train_stage="pretrain").train()
    windows = [[*history, target] for history, target in zip(HISTORIES, TARGETS, strict=True)]
    cases = [
        (i, window[:end], window[end])
        for i, (window, n) in enumerate(zip(windows, n_targets, strict=True))
        for end in range(len(window) - n, len(window))
    ]
    synthetic = torch.randint(8, (len(cases), 4), generator=torch.Generator().manual_seed(5))
    synthetic[-1] = model.digits[TARGETS[-1]]
    monkeypatch.setattr(model, "redraw", lambda digits: synthetic)
    losses = []
    for case, (i, history, target) in enumerate(cases):
        negatives = [model.digits[item].tolist() for j, _, item in cases if j != i and item != target]
        negatives += [] if case == len(cases) - 1 else [synthetic[case].tolist()]
        own = math.exp(score(model, history, model.digits[target].tolist()))
        total = own + sum(math.exp(score(model, history, codes)) for codes in negatives)
        losses.append(-math.log(own / total))
    items = torch.tensor([[0] * (7 - len(window)) + window for window in windows])
    loss = model.window_loss(items, *target_positions(torch.tensor(n_targets)))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    if max(n_targets) == 1:
        assert torch.equal(model.calculate_loss(rows(HISTORIES, TARGETS)), loss)


@torch.no_grad()
def test_a_window_is_the_rows_of_its_targets():
    model = small_model().train()
    window, n_targets = [9, 2, 6, 5, 3, 30, 4], 4
    own = [rows([window[:end]], [window[end]]) for end in range(3, 7)]
    alone = [model.calculate_loss(row).item() for row in own]
    assert model.window_loss(torch.tensor([window]), n_targets).item() == pytest.approx(sum(alone) / 4)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_every_weight_learns(stage):
    model = small_model(train_stage=stage).train()
    model.calculate_loss(rows(HISTORIES, TARGETS)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # A key's bias adds the same to all scores of a query.
        assert parameter.grad.abs().sum() > 1e-4 or name.endswith("key.bias"), name


def history_logits(model, history):
    """A dict of the logits that items of a history have for being in it."""
    logits, added = {}, model.history_logit
    for ago, item in enumerate(reversed(history)):
        logits[item] = logits.get(item, 0) + 8 * (added.of_all + added.of_distance[ago]).item()
    return logits


def test_logits_of_the_history_train_on_top_of_the_other_weights():
    """They have the gradient of the loss, and the other weights that of the loss without them."""
    plain, model = small_model().train(), small_model(history_bias=True).train()
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    histories, targets = [*HISTORIES, [2, 8, 8, 2, 8]], [*TARGETS, 8]  # two targets are in their history
    without, loss = (each.calculate_loss(rows(histories, targets)) for each in (plain, model))
    without.backward()
    loss.backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad)

    of_all, of_distance = (each.detach().clone().requires_grad_() for each in model.history_logit.parameters())
    expected = 0
    for history, target in zip(histories, targets, strict=True):
        scores = torch.tensor([score(model, history, model.digits[item].tolist()) for item in range(1, 31)])
        for ago, item in enumerate(reversed(history)):
            scores = scores + 8 * (of_all + of_distance[ago]) * F.one_hot(torch.tensor(item - 1), 30)
        expected = expected - scores.log_softmax(dim=0)[target - 1] / len(targets)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)
    gradients = torch.autograd.grad(expected, (of_all, of_distance))
    for parameter, gradient in zip(model.history_logit.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-4)


def test_scores_with_logits_of_the_history():
    model, plain = small_model(history_bias=True), small_model()
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    before, after = plain.full_sort_predict(rows(HISTORIES)), model.full_sort_predict(rows(HISTORIES))
    for row, history in enumerate(HISTORIES):
        for item, logit in history_logits(model, history).items():
            before[row, item] += logit
    torch.testing.assert_close(after, before)
    for item in (7, 9, 30):
        torch.testing.assert_close(model.predict(rows(HISTORIES, [item] * 4)), after[:, item])
    padded = torch.tensor([[0] * (8 - len(history)) + history for history in HISTORIES])
    torch.testing.assert_close(model.exact(padded), after.log_softmax(dim=1))


def test_scores_by_hand_and_predict_agrees():
    model = small_model()
    whole = model.full_sort_predict(rows(HISTORIES))
    assert whole.shape == (4, 31) and (whole[:, 0] == -torch.inf).all()
    for row, history in enumerate(HISTORIES):
        with torch.no_grad():
            expected = [score(model, history, model.digits[item].tolist()) for item in range(1, 31)]
        assert whole[row, 1:].tolist() == pytest.approx(expected, abs=1e-4)
    for item in (1, 17, 30):
        assert torch.allclose(model.predict(rows(HISTORIES, [item] * 4)), whole[:, item], atol=1e-5)
    encode, encoded = model.encode, []
    model.encode = lambda vectors, item_seq: encoded.append(len(item_seq)) or encode(vectors, item_seq)
    drawn = [(i % 4, 1 + i * 7 % 30) for i in range(80)]  # as sampled evaluation has them
    found = model.predict(rows([HISTORIES[row] for row, _ in drawn], [item for _, item in drawn]))
    assert torch.allclose(found, whole[tuple(zip(*drawn, strict=True))], atol=1e-5)
    assert encoded == [4]


def test_scores_depend_neither_on_padding_nor_on_the_rest_of_a_batch():
    model = small_model()
    together = model.full_sort_predict(rows(HISTORIES)).log_softmax(dim=1)
    for row, history in enumerate(HISTORIES):
        alone = model.exact(torch.tensor([history]))[0]
        assert torch.allclose(alone, together[row], atol=1e-5)
        padded = torch.tensor([[0, 0, 0, *history], [8] * (len(history) + 3)])
        assert torch.allclose(model.exact(padded)[0], alone, atol=1e-5)
    assert alone.exp().sum().item() == pytest.approx(1)


def test_the_last_items_of_a_long_history_are_read():
    model = small_model()
    long = torch.tensor([[9, 9, 9, 3, 1, 4, 11, 6, 2], [0, 0, 0, 0, 0, 0, 5, 6, 7]])
    expected = model.full_sort_predict(rows([[3, 1, 4, 11, 6, 2], [5, 6, 7]])).log_softmax(dim=1)
    assert torch.allclose(model.exact(long), expected, atol=1e-5)


def test_items_that_share_all_codes_share_scores():
    codes = np.random.default_rng(0).integers(0, 8, size=(30, 4))
    codes[4] = codes[20]
    scores = small_model(codes).full_sort_predict(rows(HISTORIES))
    assert torch.equal(scores[:, 5], scores[:, 21]) and not torch.equal(scores[:, 5], scores[:, 6])


def test_code_embeddings_start_from_the_text():
    """What is added to the random start is a linear map of the reconstructed text, which least squares find."""
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(60, 12)).astype(np.float32))
    quantizer = OPQ(codebook_size=8, codebook_depth=4, kmeans_iterations=10, kmeans_sample=1000)
    codes = quantizer.fit(x, seed=0)
    tokenizer = Tokenizer(quantizer, {})
    at_random, started = (small_model(codes, tokenizer=tokenizer, text_initializer=on) for on in (False, True))
    added = (started.code_embedding - at_random.code_embedding).detach()
    assert added.std() == pytest.approx(0.1, rel=1e-3)
    of_items = added[torch.arange(4), codes].sum(dim=1).numpy()
    text = (quantizer.reconstruct(codes) - x.mean(dim=0)).numpy()
    projection = np.linalg.lstsq(text, of_items, rcond=None)[0]
    np.testing.assert_allclose(text @ projection, of_items, atol=1e-4)


def test_candidates_follow_the_weights():
    """Cached vectors are not reused after the weights change."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = model.full_sort_predict(rows(HISTORIES))
    model.train()
    model.calculate_loss(rows(HISTORIES, TARGETS)).backward()
    optimizer.step()
    model.eval()
    after = model.full_sort_predict(rows(HISTORIES))
    assert not torch.allclose(before, after)
    twin = small_model(seed=0)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.full_sort_predict(rows(HISTORIES)), after)
    model.load_state_dict(small_model().state_dict())
    assert torch.equal(model.full_sort_predict(rows(HISTORIES)), before)


# --- semi-synthetic negatives ---


def test_codes_are_redrawn_with_their_probability():
    model = small_model(redraw_prob=0.75, codebook_size=16)
    codes = torch.full((20000, 4), 3)
    redrawn = model.redraw(codes)
    kept = (redrawn == 3).float().mean(dim=0)
    # A redrawn code is the old one by chance; the tolerance is four standard deviations.
    expected = 0.25 + 0.75 / 16
    assert (kept - expected).abs().max() < 4 * math.sqrt(expected * (1 - expected) / 20000)
    others = torch.bincount(redrawn[redrawn != 3], minlength=16) / redrawn.numel()
    assert (others[[code for code in range(16) if code != 3]] - 0.75 / 16).abs().max() < 0.003
    assert (codes == 3).all() and redrawn.min() == 0 and redrawn.max() == 15


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_codes_are_redrawn_never_or_always(prob):
    model = small_model(redraw_prob=prob)
    codes = torch.full((1000, 4), 9)  # no code that is drawn
    assert ((model.redraw(codes) != 9).float().mean().item()) == prob


# --- permutations ---


def test_sinkhorn_scales_rows_and_columns():
    x = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0))
    plain = x.double().exp()
    for _ in range(3):
        for matrix in plain:
            for row in range(5):
                matrix[row] = matrix[row] / matrix[row].sum()
            for column in range(5):
                matrix[:, column] = matrix[:, column] / matrix[:, column].sum()
    assert torch.allclose(log_sinkhorn(x, 3).exp().double(), plain, atol=1e-5)
    many = log_sinkhorn(x, 200).exp()
    assert torch.allclose(many.sum(dim=-1), torch.ones(3, 5), atol=1e-4)
    assert torch.allclose(many.sum(dim=-2), torch.ones(3, 5), atol=1e-4)


def test_without_a_permutation_codes_look_up_their_own_embeddings():
    model = small_model()
    assert model.permutation_logits is None
    assert model.row_of_code.tolist() == list(range(4 * 8))


def test_permutations_are_drawn_with_gumbel_noise():
    torch.manual_seed(0)
    assert kstest(gumbel_like(torch.zeros(50_000)).numpy(), "gumbel_r").pvalue > 0.001


def test_drawn_permutations_have_a_one_a_row_and_the_gradient_of_the_smooth_matrix():
    model = small_model(pre_model_path="a.pth")
    drawn = model._drawn_permutation()
    assert drawn.shape == (4, 8, 8)
    assert torch.allclose(drawn.sum(dim=-1), torch.ones(4, 8))
    assert torch.allclose(drawn.max(dim=-1).values, torch.ones(4, 8))
    drawn[0, 0, 3].backward()
    assert (model.permutation_logits.grad[0, 0] != 0).all() and (model.permutation_logits.grad[1:] == 0).all()


def test_the_assignment_is_the_best_permutation():
    model = small_model(pre_model_path="a.pth")
    logits = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))
    logits[0, :, 5] += 9  # the largest of every row is in one column
    with torch.no_grad():
        model.permutation_logits.copy_(logits)
    model.assign_permutation()
    found = model.row_of_code.view(4, 8) - 8 * torch.arange(4).unsqueeze(1)
    for digit in range(4):
        assert sorted(found[digit].tolist()) == list(range(8))
        total = sum(logits[digit, code, found[digit, code]] for code in range(8))
        others = [sum(logits[digit, torch.arange(8), torch.randperm(8)]) for _ in range(2000)]
        assert total >= max(others)


def test_a_planted_permutation_is_found():
    """Items follow each other in a ring; the digits of a trained model's items are relabelled, and the labels are learned.

    Depending on the draws, training finds the permutation or stops in a local optimum; one of a few attempts succeeds.
    """
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 6, size=(100, 4))
    ring = torch.from_numpy(np.tile(rng.permutation(100) + 1, 2))
    windows = torch.stack([ring[start : start + 4] for start in range(100)])
    settings = {"codebook_size": 6, "hidden_size": 32, "inner_size": 32, "initializer_range": 0.05, "temperature": 0.07}

    def train(model, parameters, steps, rate):
        optimizer = torch.optim.Adam(parameters, lr=rate)
        model.train()
        for _ in range(steps):
            loss = model.window_loss(windows, 3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()

    def loss_of(model):
        with torch.no_grad():
            return model.window_loss(windows, 3).item()

    source = small_model(codes, **settings)
    train(source, source.parameters(), 150, 0.01)
    relabelled = np.array([rng.permutation(6) for _ in range(4)])
    model = small_model(relabelled[np.arange(4), codes], pre_model_path="a.pth", **settings)
    model.start_from(source.state_dict())
    assert loss_of(model) > 5 > 0.5 > loss_of(source)
    model.learn_permutation()
    found = []
    for _ in range(6):
        with torch.no_grad():
            model.permutation_logits.zero_()
        train(model, [model.permutation_logits], 200, 0.1)
        model.assign_permutation()
        found.append((model.row_of_code.view(4, 6) - 6 * torch.arange(4).unsqueeze(1)).tolist())
        if loss_of(model) == pytest.approx(loss_of(source), abs=1e-5):
            break
    assert found[-1] == np.argsort(relabelled, axis=1).tolist()


# --- several datasets as one ---


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of the datasets "left", "right" and "tiny", with one file of embeddings of the items of left and right."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("left", "right", "tiny"):
        write_dataset(folder, name)
    arrays = {name: np.load(folder / name / "embeddings.npz") for name in ("left", "right")}
    np.savez(
        folder / "both.npz",
        items=np.concatenate([np.char.add(f"{name}:", array["items"]) for name, array in arrays.items()]),
        embeddings=np.concatenate([array["embeddings"] for array in arrays.values()]),
    )
    return folder


@pytest.fixture
def settings(tmp_path, two):
    """Settings of a small VQRec."""
    return {
        "data_path": str(two),
        "checkpoint_dir": str(tmp_path / "saved"),
        "cache_dir": str(tmp_path / "cache"),
        "codebook_size": 8,
        "codebook_depth": 4,
        "hidden_size": 16,
        "inner_size": 16,
        "train_batch_size": 128,
        "learning_rate": 0.01,
        "epochs": 2,
        "show_progress": False,
        "item_embeddings": str(two / "tiny" / "embeddings.npz"),
    }


@pytest.fixture
def pretraining(settings, two):
    """Settings for pre-training on two datasets."""
    return {**settings, "train_stage": "pretrain", "item_embeddings": str(two / "both.npz")}


def mixed(settings, dataset="left,right"):
    """The folder of the mixture that a run makes."""
    return Path(experiment.prepare("VQRec", dataset, settings)["data_path"])


def lines_of(path):
    return path.read_text().splitlines()


def test_a_mixture_has_the_rows_of_all(pretraining, two):
    folder = mixed(pretraining)
    for kind, n_ids in (("inter", 2), ("item", 1)):
        head, *found = lines_of(folder / f"left,right.{kind}")
        expected = []
        for name in ("left", "right"):
            first, *own = lines_of(two / name / f"{name}.{kind}")
            assert head == first
            for line in own:
                values = line.split("\t")
                expected.append("\t".join([*(f"{name}:{value}" for value in values[:n_ids]), *values[n_ids:]]))
        assert found == expected


def test_a_mixture_is_made_once_and_anew_where_a_file_changes(pretraining, two, tmp_path):
    folder = mixed(pretraining)
    stamp = (folder / "left,right.inter").stat().st_mtime_ns
    assert mixed(pretraining) == folder and (folder / "left,right.inter").stat().st_mtime_ns == stamp
    shutil.copytree(two, tmp_path / "other")
    with open(tmp_path / "other" / "right" / "right.inter", "a") as file:
        file.write("u1\ti1\t9999\n")
    other = mixed({**pretraining, "data_path": str(tmp_path / "other")})
    assert other != folder
    assert len(lines_of(other / "left,right.inter")) == len(lines_of(folder / "left,right.inter")) + 1


def test_recboles_sample_is_not_mixed(capsys, two):
    call = ["run", "--model=VQRec", "--dataset=left,ml-100k", f"--data_path={two}"]
    assert main(call) == 2
    assert "ml-100k in left,ml-100k is RecBole's sample, which is not mixed" in capsys.readouterr().err
    assert not (two / "ml-100k").exists()


def test_two_runs_do_not_make_a_mixture_together(pretraining):
    folder = mixed(pretraining).parent
    shutil.rmtree(folder)
    with (
        locked(f"{folder}.lock", "another run"),
        pytest.raises(TigerError, match="the join of left,right is running already, in process"),
    ):
        mixed(pretraining)
    assert mixed(pretraining).parent == folder


def test_columns_and_quotes_of_a_mixture(pretraining, tmp_path):
    """Item columns that a dataset lacks are empty; interaction columns that one lacks are left out; values do not change."""
    folder = tmp_path / "raw"
    for name in ("left", "right"):
        write_dataset(folder, name)
    head, _, *others = lines_of(folder / "right" / "right.item")
    rows = [head + "\tcolour:token", '"""Quoted"" 0"\t"""So"" it is"\tAcme\t1.5\tred', *(f"{row}\tblue" for row in others)]
    (folder / "right" / "right.item").write_text("\n".join(rows) + "\n")
    inter = (folder / "right" / "right.inter").read_text().replace("\ti0\t", '\t"""Quoted"" 0"\t')
    rated = "\n".join(f"{row}\t{'rating:float' if i == 0 else 5}" for i, row in enumerate(inter.splitlines()))
    (folder / "right" / "right.inter").write_text(rated + "\n")
    config = experiment.prepare("VQRec", "left,right", {**pretraining, "data_path": str(folder)})
    assert lines_of(Path(config["data_path"]) / "left,right.inter")[0] == "user_id:token\titem_id:token\ttimestamp:float"
    items = lines_of(Path(config["data_path"]) / "left,right.item")
    assert items[0].endswith("price:float\tcolour:token") and items[1].endswith("\t")
    table = read_item_text(config)
    assert table.loc['right:"Quoted" 0', "text"] == '"So" it is, Acme, 1.5'
    assert table.loc["left:i5", "title"] == "The perfume number 5"


def without_text(folder):
    (folder / "right" / "right.item").unlink()


def of_another_type(folder):
    file = folder / "right" / "right.item"
    file.write_text(file.read_text().replace("price:float", "price:token"))


@pytest.mark.parametrize(
    ("dataset", "change", "message"),
    [
        ("left,left", None, "dataset left,left is no list of different datasets: write it as --dataset=a,b, without spaces"),
        ("left,", None, "dataset left, is no list of different datasets"),
        ("left,right", without_text, "dataset right has no item file: .*right.item does not exist"),
        ("left,right", of_another_type, "right.item: the column price is of type token, in .*left.item of type float"),
        ("left,absent", None, "dataset absent is not at|absent .*could not be fetched|absent"),
    ],
    ids=["twice", "no name", "without text", "another type", "absent"],
)
def test_datasets_that_cannot_be_mixed(dataset, change, message, pretraining, tmp_path):
    for name in ("left", "right"):
        write_dataset(tmp_path / "raw", name)
    if change:
        change(tmp_path / "raw")
    del pretraining["item_embeddings"]
    with pytest.raises(TigerError, match=message) as caught:
        mixed({**pretraining, "data_path": str(tmp_path / "raw")}, dataset)
    assert "\n" not in str(caught.value)


def test_a_mixture_without_text_is_for_all_models(pretraining, two, tmp_path):
    """As a single dataset whose embeddings are from a file."""
    shutil.copytree(two, tmp_path / "bare", ignore=shutil.ignore_patterns("*.item"))
    settings = {"data_path": str(tmp_path / "bare"), "cache_dir": pretraining["cache_dir"]}
    for model in ("TIGER", "SASRec"):
        config = experiment.prepare(model, "left,right", {**settings, "item_embeddings": pretraining["item_embeddings"]})
        assert len(lines_of(Path(config["data_path"]) / "left,right.inter")) > 100
        with pytest.raises(TigerError, match="dataset left has no item file"):
            experiment.prepare(model, "left,right", {**settings, "cache_dir": str(tmp_path / "other")})
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    assert experiment.prepare("SASRec", "left,right", {**settings, "load_col": columns})["load_col"] == columns


def test_a_mixture_with_text_of_some_is_refused(pretraining, two, tmp_path):
    shutil.copytree(two, tmp_path / "raw")
    (tmp_path / "raw" / "right" / "right.item").unlink()
    with pytest.raises(TigerError, match="right has no item file, unlike the others of left,right"):
        mixed({**pretraining, "data_path": str(tmp_path / "raw")})


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_a_mixture_is_made_in_the_cache_of_every_model(pretraining, model, tmp_path):
    names = ("data_path", "item_embeddings") if model == "TIGER" else ("data_path",)
    own = {**{name: pretraining[name] for name in names}, "cache_dir": str(tmp_path / "elsewhere")}
    config = experiment.prepare(model, "left,right", own)
    assert Path(config["data_path"]).parents[1] == tmp_path / "elsewhere"


def test_presplit_files_cannot_be_mixed(pretraining):
    with pytest.raises(TigerError, match="pre-split files cannot be mixed"):
        mixed({**pretraining, "benchmark_filename": ["train", "valid", "test"]})


# --- pre-training, and fine-tuning of what it saved ---


def run(dataset, settings):
    return experiment.run(experiment.prepare("VQRec", dataset, settings), "results")


def weights_of(result):
    return load_checkpoint(result["checkpoint"])["state_dict"]


def test_from_two_datasets_to_a_third_by_the_commands(pretraining, settings, capsys):
    arguments = [f"--{key}={json.dumps(value)}" for key, value in pretraining.items()]
    assert main(["run", "--model=VQRec", "--dataset=left,right", *arguments]) == 0
    source = capsys.readouterr().out.split("checkpoint: ")[1].strip()
    state = load_checkpoint(source)
    assert len(state["other_parameter"]["items"]) == 120
    assert {item.partition(":")[0] for item in state["other_parameter"]["items"]} == {"left", "right"}

    more = {"pre_model_path": source, "permutation_epochs": 2, "epochs": 4}
    arguments = [f"--{key}={json.dumps(value)}" for key, value in {**settings, **more}.items()]
    assert main(["run", "--model=VQRec", "--dataset=tiny", *arguments]) == 0
    tuned = load_checkpoint(capsys.readouterr().out.split("checkpoint: ")[1].strip())
    assert tuned["epoch"] >= 2  # the best is of the second stage
    for name, weights in tuned["state_dict"].items():
        if name not in ("codes", "row_of_code", "permutation_logits", "code_embedding"):
            assert torch.equal(weights, state["state_dict"][name]), name
    assert not torch.equal(tuned["state_dict"]["code_embedding"], state["state_dict"]["code_embedding"])
    looked_up = tuned["state_dict"]["row_of_code"].view(4, 8)
    assert looked_up.sort(dim=1).values.flatten().tolist() == list(range(32))
    assert looked_up.flatten().tolist() != list(range(32))


def test_tune_on_two_datasets(pretraining, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "redraw.yaml").write_text("redraw_prob: [0.5, 0.75]\n")
    arguments = [f"--{key}={json.dumps(value)}" for key, value in pretraining.items()]
    call = ["--model=VQRec", "--dataset=left,right", *arguments]
    assert main(["tune", *call, "--sweep=redraw.yaml", "--cpus_per_trial=1", "--results_dir=swept"]) == 0
    (won,) = read_results("swept")
    assert main(["run", *call, f"--redraw_prob={won['settings']['redraw_prob']}", "--results_dir=alone"]) == 0
    (alone,) = read_results("alone")
    assert won["data_hash"] == alone["data_hash"]
    assert won["test_result"] == alone["test_result"]
    assert [file.name for file in Path("swept").glob("*.json")] == [file.name for file in Path("alone").glob("*.json")]


def test_the_permutation_trains_alone(pretraining, settings, monkeypatch):
    source = run("left,right", {**pretraining, "epochs": 1})
    before, saved = weights_of(source), []
    train_epoch = WindowTrainer._train_epoch

    def keeping(self, *args, **kwargs):
        saved.append({name: weights.clone() for name, weights in self.model.state_dict().items()})
        return train_epoch(self, *args, **kwargs)

    rates, step = [], VQRecTrainer.train_step

    def noting(self, *args):
        rates.append(self.optimizer.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(WindowTrainer, "_train_epoch", keeping)
    monkeypatch.setattr(VQRecTrainer, "train_step", noting)
    more = {"pre_model_path": source["checkpoint"], "permutation_epochs": 1, "epochs": 3, "history_bias": True}
    tuned = run("tiny", {**settings, **more, "permutation_learning_rate": 0.1, "learning_rate": 0.01})
    assert rates == [0.1] * (len(rates) // 3) + [0.01] * (len(rates) * 2 // 3)
    first, second, third = saved
    assert all(torch.equal(first[name], before[name]) for name in before.keys() - {"codes"})
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"permutation_logits", "row_of_code"}
    changed = {name for name in first if not torch.equal(second[name], third[name])}
    assert changed == {"code_embedding", "history_logit.of_all", "history_logit.of_distance"}
    assert tuned["parameters"] == sum(
        len(first[name].flatten()) for name in first.keys() - {"permutation_logits", "codes", "row_of_code"}
    )


@pytest.mark.parametrize("killed_at", [0, 1, 2], ids=["first stage", "end of the first stage", "second stage"])
def test_killed_fine_tuning_resumes_and_ends_as_the_uninterrupted_one(killed_at, pretraining, settings):
    """Its five epochs are two of the permutation and three of the code embeddings, with dropout."""
    source = run("left,right", {**pretraining, "epochs": 1})
    more = {"pre_model_path": source["checkpoint"], "permutation_epochs": 2, "epochs": 5, "metric_decimal_place": 10}
    whole = run("tiny", {**settings, **more, "checkpoint_dir": "whole"})

    def kill(result):
        if result["epochs"] == killed_at + 2:  # the state is of the epoch before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        experiment.train(experiment.prepare("VQRec", "tiny", {**settings, **more}), after_epoch=kill)
    config = experiment.prepare("VQRec", "tiny", {**settings, **more, "resume": True})
    resumed, trainer, _ = experiment.train(config)
    assert list(trainer.train_loss_dict) == list(range(killed_at + 1, 5))
    course = [[(epoch["train_loss"], epoch["valid_result"]) for epoch in each["epoch_log"]] for each in (whole, resumed)]
    assert course[0] == course[1]
    expected = weights_of(whole)
    for name, weights in weights_of(resumed).items():
        assert torch.equal(weights, expected[name]), name


@pytest.mark.parametrize("stopping_step", [0, 2])
def test_early_stopping_counts_from_the_second_stage_on(stopping_step, pretraining, settings, monkeypatch):
    source = run("left,right", {**pretraining, "epochs": 1})
    scores = iter([0.9, *(0.1 - 0.01 * epoch for epoch in range(20))])  # the first epoch is the best
    monkeypatch.setattr(VQRecTrainer, "_valid_epoch", lambda *args, **kwargs: (next(scores), {"ndcg@10": 0.5}))
    more = {"pre_model_path": source["checkpoint"], "permutation_epochs": 3, "epochs": 9, "stopping_step": stopping_step}
    trainer = experiment.train(experiment.prepare("VQRec", "tiny", {**settings, **more}))[1]
    assert len(trainer.epoch_log) == 3 + stopping_step + 1


def test_a_checkpoint_reloads_to_the_same_scores(pretraining, settings):
    """RecBole's function and the package's own load it, without the pre-trained model."""
    source = run("left,right", {**pretraining, "epochs": 1})
    result = run("tiny", {**settings, "pre_model_path": source["checkpoint"], "permutation_epochs": 1})
    Path(source["checkpoint"]).unlink()
    config, model, dataset, _, _, test_data = load_data_and_model(result["checkpoint"])
    assert isinstance(model, VQRec)
    trainer = get_trainer(config["MODEL_TYPE"], "VQRec")(config, model)
    assert trainer.evaluate(test_data, load_best_model=False) == result["test_result"]
    rows = test_data._dataset[[0, 5, 9]]
    scores = model.full_sort_predict(rows).log_softmax(dim=1)
    recommender = Recommender.load(result["checkpoint"], "cpu")
    tokens = dataset.field2id_token["item_id"]
    histories = [
        [str(tokens[item]) for item in row[:length]]
        for row, length in zip(rows["item_id_list"].tolist(), rows["item_length"].tolist(), strict=True)
    ]
    for row, found in zip(scores, recommender.recommend(histories, k=60), strict=True):
        expected = dict(zip(map(str, tokens[1:]), row[1:].tolist(), strict=True))
        assert {one["item"]: one["score"] for one in found} == pytest.approx(expected, abs=1e-4)
    among = ["i1", "i2", "i3", *histories[0]]
    (found,) = recommender.recommend(histories[:1], k=1, exclude_history=True, among=among)
    assert {one["item"] for one in found} <= {"i1", "i2", "i3"} - set(histories[0])


def test_a_checkpoint_that_started_from_text_needs_none(settings, tmp_path):
    embeddings = tmp_path / "embeddings.npz"
    shutil.copy(settings["item_embeddings"], embeddings)
    result = run("tiny", {**settings, "text_initializer": True, "item_embeddings": str(embeddings)})
    embeddings.unlink()
    (found,) = Recommender.load(result["checkpoint"], "cpu").recommend([["i1", "i2"]], k=3)
    assert len(found) == 3


def test_run_recbole_mixes_datasets(pretraining):
    result = run_recbole(model="VQRec", dataset="left,right", config_dict={**pretraining, "epochs": 1})
    assert 0 < result["test_result"]["recall@10"] <= 1


# --- mistakes ---


@pytest.fixture
def source(pretraining):
    """The checkpoint of a pre-trained model."""
    return run("left,right", {**pretraining, "epochs": 1})["checkpoint"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "was trained with hidden_size 16, but here it is 32: give --hidden_size=16, or another"),
        ({"codebook_size": 7}, "was trained with codebook_size 8, but here it is 7"),
        ({"codebook_depth": 2}, "was trained with codebook_depth 4, but here it is 2"),
        ({"n_layers": 1}, "was trained with n_layers 2, but here it is 1"),
        ({"MAX_ITEM_LIST_LENGTH": 10}, "was trained with MAX_ITEM_LIST_LENGTH 20, but here it is 10"),
        ({"train_stage": "pretrain"}, "pre_model_path is for train_stage finetune: leave it out to pre-train"),
        ({"permutation_epochs": 2}, "epochs 2 leaves none to train code embeddings after permutation_epochs, 2"),
        ({"pre_model_path": "no.pth"}, "pre_model_path no.pth does not exist: give the checkpoint of a run with"),
        ({"train_stage": "test"}, "unknown train_stage 'test': it may be finetune or pretrain"),
        ({"text_initializer": True}, "pre_model_path holds the embeddings to start from: give --text_initializer=False"),
        ({"text_initializer": True, "quantizer": "rq_kmeans"}, "starts from the codebooks of the quantizer opq: give"),
        ({"text_initializer": True, "semantic_ids": "own.tsv"}, "starts from the codebooks of the quantizer opq: give"),
        ({"n_heads": 3}, "hidden_size 16 has to be a multiple of n_heads, 3"),
        ({"history_bias": True, "train_stage": "pretrain"}, "history_bias learns with train_stage finetune"),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else "",
)
def test_settings_that_do_not_fit(changes, message, source, settings):
    begin = {"pre_model_path": source, "permutation_epochs": 1}
    with pytest.raises(TigerError, match=message) as caught:
        experiment.prepare("VQRec", "tiny", {**settings, **begin, **changes})
    assert "\n" not in str(caught.value)


def test_other_checkpoints_are_no_pretrained_model(settings, data_path, tmp_path):
    config = experiment.prepare("TIGER", "tiny", {**small_settings(tmp_path, data_path), "epochs": 1})
    tiger = experiment.run(config, "results")["checkpoint"]
    tuned = run("tiny", {**settings, "epochs": 1})["checkpoint"]
    for file, message in (
        (tiger, "is a checkpoint of TIGER, not of VQRec"),
        (tuned, "was trained with train_stage fine"),
    ):
        with pytest.raises(TigerError, match=f"pre_model_path {file} {message}"):
            experiment.prepare("VQRec", "tiny", {**settings, "pre_model_path": file, "permutation_epochs": 1})


def test_codes_of_another_shape_are_refused_before_training(source, settings, tmp_path):
    """With IDs from a file, the settings do not give the number of digits."""
    codes = np.random.default_rng(0).integers(0, 8, size=(60, 3))
    SemanticIDs([f"i{i}" for i in range(60)], add_collision_level(codes)).save(tmp_path / "own.tsv")
    more = {"pre_model_path": source, "permutation_epochs": 1, "semantic_ids": str(tmp_path / "own.tsv")}
    with pytest.raises(TigerError, match="holds tables of 4 digits of 8 codes, but items here have 3 of 8"):
        run("tiny", {**settings, **more})


def test_a_checkpoint_of_another_catalogue_is_refused():
    model = small_model()
    for other, message in (
        (small_model(np.random.default_rng(1).integers(0, 8, size=(31, 4))).state_dict(), "31 items, here 30"),
        (small_model(hidden_size=14).state_dict(), "made with other settings"),
        ({"network.codes": torch.zeros(3)}, "holds no semantic IDs: it is not one of VQRec"),
    ):
        with pytest.raises(TigerError, match=message):
            model.load_state_dict(other)

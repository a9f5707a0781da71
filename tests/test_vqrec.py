"""VQRec: losses and scores by plain loops, permutations that are planted and found, pre-training that is transferred."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recbole_tiger.catalogue.semantic_ids import SemanticIDs, add_collision_level
from recbole_tiger.errors import TigerError
from recbole_tiger.model.vqrec import VQRec, log_sinkhorn

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
    "train_stage": "finetune",
    "pre_model_path": None,
    "redraw_prob": 0.75,
    "sinkhorn_temperature": 0.7,
    "sinkhorn_iterations": 3,
}


def small_model(codes=None, seed=0, **changes):
    """A VQRec of random weights over a catalogue of the given codes, by default 30 items of 4 random digits."""
    if codes is None:
        codes = np.random.default_rng(seed).integers(0, 8, size=(30, 4))
    items = [f"i{i}" for i in range(len(codes))]
    catalogue = SimpleNamespace(
        items=items, titles=items, semantic_ids=SemanticIDs(items, add_collision_level(np.asarray(codes)))
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
    """RecBole's rows of lists of items."""
    width = SETTINGS["MAX_ITEM_LIST_LENGTH"]
    return {
        "item_id_list": torch.tensor([history + [0] * (width - len(history)) for history in histories]),
        "item_length": torch.tensor([len(history) for history in histories]),
        "item_id": torch.tensor(targets or [1] * len(histories)),
    }


HISTORIES, TARGETS = [[3, 1, 4, 11], [5], [9, 2, 6, 5, 3, 30], [7, 7]], [9, 2, 9, 30]


# --- a plain reading ---


def item_vector(model, codes):
    """The mean of the embeddings of some digits, each a row of its own table."""
    size = model.code_embedding.shape[1]
    table = {}
    for digit, code in enumerate(codes):
        row = int(model.row_of_code[digit * size + code])
        table[digit] = model.code_embedding[row // size, row % size]
    return sum(table.values()) / len(table)


def attend(layer, x):
    """RecBole's attention layer for a list of vectors, each of which sees itself and those before it."""
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
    """The encoder's output at the last item of a history, of length one."""
    x = [
        model.LayerNorm(item_vector(model, model.digits[item].tolist()) + model.position_embedding.weight[place])
        for place, item in enumerate(history)
    ]
    for layer in model.trm_encoder.layer:
        x = [layer.feed_forward(vector) for vector in attend(layer, x)]
    return x[-1] / x[-1].norm()


def score(model, history, codes):
    """Cosine over temperature of a history and an item of some codes."""
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


@torch.no_grad()
@pytest.mark.parametrize("n_targets", [[1, 1, 1, 1], [3, 1, 4, 1]], ids=["rows", "windows"])
def test_pretraining_loss_by_hand(n_targets, monkeypatch):
    """Two windows have the same target, and the last target has a synthetic item that is it."""
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
    loss = model.window_loss(items, torch.tensor(n_targets))
    assert loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    if max(n_targets) == 1:
        assert torch.equal(model.calculate_loss(rows(HISTORIES, TARGETS)), loss)


@torch.no_grad()
def test_a_window_is_the_rows_of_its_targets():
    model = small_model().train()
    window, n_targets = [9, 2, 6, 5, 3, 30, 4], 4
    own = [rows([window[:end]], [window[end]]) for end in range(3, 7)]
    alone = [model.calculate_loss(row).item() for row in own]
    assert model.window_loss(torch.tensor([window]), torch.tensor([n_targets])).item() == pytest.approx(sum(alone) / 4)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_every_weight_learns(stage):
    model = small_model(train_stage=stage).train()
    model.calculate_loss(rows(HISTORIES, TARGETS)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # A key's bias adds the same to all scores of a query.
        assert parameter.grad.abs().sum() > 1e-4 or name.endswith("key.bias"), name


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


def test_candidates_follow_the_weights():
    """What an evaluation keeps is not what the next one reads."""
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

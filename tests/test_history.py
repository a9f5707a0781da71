"""Evaluation without what users have already, against sets that are made by hand from the dataset's file."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.evaluator import Collector
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.trainer import Trainer

from recbole_tiger.errors import TigerError
from recbole_tiger.model.base import LEFT_OUT
from recbole_tiger.report.results import read_ranks, read_result
from recbole_tiger.report.statistics import metric_per_user
from recbole_tiger.runs import experiment
from recbole_tiger.settings.config import make_config
from recbole_tiger.settings.identity import run_key
from recbole_tiger.training.history import leaving_out, ordinals, padded
from tests.conftest import N_ITEMS, N_USERS, read_sequences

SHORT = 3  # histories that models read, far shorter than those that users have
RATIO = {"split": {"RS": [0.4, 0.3, 0.3]}, "group_by": "user", "order": "TO", "mode": "full"}
SAMPLED = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni20"}


def settings_of(model, settings, **more):
    """Those of a model that learns for an epoch."""
    own = {"TIGER": settings, "VQRec": {**settings, "quantizer": "rq_kmeans"}}
    plain = {key: settings[key] for key in ("data_path", "checkpoint_dir", "show_progress")}
    shared = {"epochs": 1, "MAX_ITEM_LIST_LENGTH": SHORT, "load_col": None, "state": "ERROR"}
    return {**own.get(model, plain), **shared, **more}


def loaded(model, settings, **more):
    config = experiment.prepare(model, "tiny", settings_of(model, settings, **more))
    return config, *experiment.load(config)


def run_of(model, settings, **more):
    """The result of a run, its trainer and test data."""
    config = experiment.prepare(model, "tiny", settings_of(model, settings, **more))
    result, trainer, test_data = experiment.train(config)
    experiment.finish(result, trainer, test_data, Path("results/x.json"))
    return result, trainer, test_data


def ranks_by_user(name):
    """Ranks that :func:`run_of` wrote, by user."""
    found = read_ranks("results/x.ranks.npz")
    return dict(zip(found["users"], found[name], strict=True))


@torch.no_grad()
def by_hand(model, data, sequences, part):
    """Ranks of the targets of leave-one-out, from a score of every item, without what users have up to them."""
    model.eval()
    dataset, ranks = data.dataset, {}
    for interaction, *_, targets in data:
        scores = model.full_sort_predict(interaction.to(model.device)).view(len(targets), -1)
        for user, row, target in zip(interaction["user_id"], scores, targets, strict=True):
            token = dataset.id2token("user_id", int(user))
            sequence = dataset.token2id("item_id", np.array(sequences[token]))
            end = len(sequence) - {"test": 1, "valid": 2}[part]
            assert sequence[end] == target
            row[0] = row[sequence[:end]] = -torch.inf
            ranks[token] = 0 if target in sequence[:end] else int((row > row[target]).sum()) + 1
    return ranks


def in_lists(ranks, length=20):
    return [rank if rank <= length else 0 for rank in ranks]


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("SASRec", {}),
        ("SASRec", {"exclude_history": True}),
        ("BPR", {}),
        ("BPR", {"repeatable": False}),
        ("VQRec", {"codebook_size": 16, "codebook_depth": 4}),
        ("TIGER", {"scoring": "exact"}),
        ("TIGER", {"beam_size": N_ITEMS}),
        ("TIGER", {"beam_size": N_ITEMS, "trie_softmax": True}),
        ("TIGER", {"beam_size": N_ITEMS, "trie_softmax": True, "exclude_history": True}),
    ],
)
def test_ranks_without_what_users_have(model, more, settings):
    sequences = read_sequences(settings["data_path"] + "/tiny")
    result, trainer, test_data = run_of(model, settings, **more)
    found = ranks_by_user("ranks_without_history")
    with leaving_out(test_data, on=False):
        expected = by_hand(trainer.model, test_data, sequences, "test")
    assert set(found) == set(sequences)
    assert list(found.values()) == in_lists([expected[user] for user in found])
    repeated = [user for user, sequence in sequences.items() if sequence[-1] in sequence[:-1]]
    assert len(repeated) > 10
    assert not any(found[user] for user in repeated)
    for name, value in result["test_result_without_history"].items():
        assert value == pytest.approx(metric_per_user(np.array(list(expected.values())), name).mean(), abs=6e-5)
    low, high = result["intervals_without_history"]["ndcg@10"]
    assert low < result["test_result_without_history"]["ndcg@10"] < high
    # The other test is that of RecBole.
    with leaving_out(test_data, on=False):
        assert experiment.as_floats(trainer.evaluate(test_data, load_best_model=False)) == result["test_result"]
    if more != {"repeatable": False}:
        assert result["test_result"] != result["test_result_without_history"]
    assert read_result("results/x.json")["test_result_without_history"] == result["test_result_without_history"]


@pytest.mark.parametrize(("model", "valid_users"), [("SASRec", None), ("BPR", None), ("TIGER", None), ("TIGER", 50)])
def test_validation_goes_by_the_setting(model, valid_users, settings):
    """One epoch's weights are validated in two ways."""
    sequences = read_sequences(settings["data_path"] + "/tiny")
    more = {"beam_size": N_ITEMS} if model == "TIGER" else {}
    scores = []
    for exclude_history in (False, True):
        settings = {**settings, "checkpoint_dir": f"saved-{exclude_history}"}
        result, _, _ = run_of(model, settings, exclude_history=exclude_history, valid_users=valid_users, **more)
        scores.append((result["best_valid_score"], result["test_result"], result["test_result_without_history"]))
        config, model_of, _, _, valid_data, _ = load_data_and_model(result["checkpoint"])
    assert scores[0][1:] == scores[1][1:]  # one training
    assert scores[0][0] != scores[1][0]
    config["valid_users"] = valid_users
    with leaving_out(valid_data, on=False):
        expected = by_hand(
            model_of,
            valid_data if valid_users is None else experiment.subset_of_users(config, valid_data),
            sequences,
            "valid",
        )
    assert len(expected) == (valid_users or N_USERS)
    assert scores[1][0] == pytest.approx(metric_per_user(np.array(list(expected.values())), "ndcg@10").mean(), abs=6e-5)


@pytest.mark.parametrize("constrained", [True, False])
def test_a_beam_gives_as_many_items_as_before(constrained, settings):
    """The places that the history would take are others' already in the search."""
    _, trainer, test_data = run_of("TIGER", settings, constrained=constrained, beam_size=20)
    model, sequences = trainer.model, read_sequences(settings["data_path"] + "/tiny")
    with leaving_out(test_data, on=True), torch.no_grad():
        for interaction, (rows, left_out), _, _ in test_data:
            items, scores = model.beam(interaction)
            assert items.shape[1] == 20
            assert scores.isfinite().all()
            for row, found in enumerate(items.tolist()):
                user = test_data.dataset.id2token("user_id", int(interaction["user_id"][row]))
                known = set(test_data.dataset.token2id("item_id", np.array(sequences[user][:-1])))
                assert known == set(left_out[rows == row].tolist())
                assert known.isdisjoint(found)
                there = [item for item in found if item]
                assert len(set(there)) == len(there)
                assert not constrained or len(there) == 20


def test_an_unconstrained_beam_as_wide_as_all_ids(settings):
    _, trainer, test_data = run_of("TIGER", settings, constrained=False)
    model = trainer.model
    n_ids = int(np.prod(model.network.widths))
    interaction = next(iter(test_data))[0]
    histories = model.histories_of(interaction)
    left_out = torch.tensor([[7, 3, 0], [0, 0, 0], [60, 0, 0]]).repeat(len(histories) // 3 + 1, 1)[: len(histories)]
    all_items, all_scores = model.unconstrained(histories, None, n_ids)
    items, scores = model.unconstrained(histories, None, n_ids, left_out)
    for row, out in enumerate(left_out.tolist()):
        gone = torch.isin(all_items[row], torch.tensor([item for item in out if item] or [-1]))
        assert torch.equal(items[row][scores[row].isfinite()], all_items[row][~gone])
        assert torch.equal(scores[row][scores[row].isfinite()], all_scores[row][~gone])


def test_left_out_ids_do_not_fill_a_beam_over_all_codes(settings):
    """At a last level of a single code a beam has no more candidates than places."""
    own = {"codebook_size": N_ITEMS, "codebook_depth": 1, "constrained": False}
    _, trainer, test_data = run_of("TIGER", settings, **own)
    model, sequences = trainer.model, read_sequences(settings["data_path"] + "/tiny")
    assert model.network.widths[-1] == 1
    gone = 0
    with leaving_out(test_data, on=True):
        for interaction, _, _, _ in test_data:
            items, scores = model.beam(interaction)
            assert not items[scores.isneginf()].any()
            gone += int(scores.isneginf().sum())
            for user, found in zip(interaction["user_id"].tolist(), items.tolist(), strict=True):
                token = test_data.dataset.id2token("user_id", user)
                assert not {*test_data.dataset.token2id("item_id", np.array(sequences[token][:-1]))} & {*found}
    assert gone > 0


@pytest.mark.parametrize("model", ["SASRec", "TIGER"])
@pytest.mark.parametrize("part", ["valid", "test"])
def test_rows_of_a_split_by_ratio(model, part, settings):
    """Every target has the items before it, those of the same part, too."""
    _, _, valid_data, test_data = loaded(model, settings, eval_args=RATIO, exclude_history=True)
    data = {"valid": valid_data, "test": test_data}[part]
    sequences, seen = read_sequences(settings["data_path"] + "/tiny"), {}
    dataset, several = data.dataset, 0
    rows_of = {user: int((dataset.inter_feat["user_id"] == user).sum()) for user in dataset.inter_feat["user_id"].tolist()}
    tests = np.bincount(test_data.dataset.inter_feat["user_id"].numpy(), minlength=N_USERS + 1)
    for interaction, (rows, left_out), _, targets in data:
        assert (LEFT_OUT in interaction) == (model == "TIGER")
        for row, (user, target) in enumerate(zip(interaction["user_id"].tolist(), targets.tolist(), strict=True)):
            sequence = dataset.token2id("item_id", np.array(sequences[dataset.id2token("user_id", user)]))
            number = seen.setdefault(user, 0)
            seen[user] += 1
            several += number > 0
            place = len(sequence) - rows_of[user] + number - (tests[user] if part == "valid" else 0)
            assert sequence[place] == target
            assert sorted(left_out[rows == row].tolist()) == sorted(set(sequence[:place]))
    assert several > 50


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_general_model_with_a_split_by_ratio(part, settings):
    """A user is one row with several targets, without the items before the first of them."""
    _, _, valid_data, test_data = loaded("BPR", settings, eval_args=RATIO, exclude_history=True)
    data, sequences = {"valid": valid_data, "test": test_data}[part], read_sequences(settings["data_path"] + "/tiny")
    sizes, tests = (
        np.bincount(one.dataset.inter_feat["user_id"].numpy(), minlength=N_USERS + 1) for one in (data, test_data)
    )
    users = 0
    for interaction, (rows, left_out), target_rows, targets in data:
        for row, user in enumerate(interaction["user_id"].tolist()):
            sequence = data.dataset.token2id("item_id", np.array(sequences[data.dataset.id2token("user_id", user)]))
            end = len(sequence) - (tests[user] if part == "valid" else 0)
            start = end - sizes[user]
            assert set(targets[target_rows == row].tolist()) == set(sequence[start:end])
            assert set(left_out[rows == row].tolist()) == set(sequence[:start])
            users += 1
    assert users == N_USERS


def test_rows_of_files_that_are_split_already(tmp_path):
    """A row's own history counts, and so do the targets of the user's rows before it."""
    path = tmp_path / "data" / "split"
    path.mkdir(parents=True)
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    (path / "split.train.inter").write_text(head + "a\ti1 i2\ti3\na\ti5\ti6\nb\ti1\ti2\nc\ti4 i7\ti5\n")
    (path / "split.valid.inter").write_text(head + "a\ti8\ti9\nb\ti1 i2\ti3\n")
    (path / "split.test.inter").write_text(head + "b\ti1 i2\ti3\na\ti4\ti4\nd\ti9 i9\ti8\n")
    settings = {
        "data_path": str(tmp_path / "data"),
        "benchmark_filename": ["train", "valid", "test"],
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
        "exclude_history": True,
        "topk": [5],
        "valid_metric": "NDCG@5",
    }
    config = make_config("SASRec", "split", settings)
    dataset = create_dataset(config)
    _, valid_data, test_data = data_preparation(config, dataset)
    found = []
    for data in (valid_data, test_data):
        ((interaction, (rows, items), _, _),) = data
        tokens = dataset.id2token("item_id", items.numpy())
        for row, user in enumerate(interaction["user_id"].tolist()):
            found.append((str(dataset.id2token("user_id", user)), "".join(sorted(item[1] for item in tokens[rows == row]))))
    assert found == [("a", "123568"), ("b", "12"), ("b", "123"), ("a", "12345689"), ("d", "9")]


@pytest.mark.parametrize("model", ["SASRec", "BPR", "TIGER"])
def test_sampled_evaluation(model, settings):
    """Of one draw the same is ranked, less what users have."""
    result, trainer, test_data = run_of(model, settings, eval_args=SAMPLED)
    sequences, drawn = read_sequences(settings["data_path"] + "/tiny"), []
    for on in (False, True):
        np.random.seed(5)
        pairs, scores = [], []
        with leaving_out(test_data, on), torch.no_grad():
            for interaction, rows, users, targets in test_data:
                assert len(users) == len(targets)
                scores += trainer.model.predict(interaction).tolist()
                pairs += zip(rows.tolist(), interaction["user_id"].tolist(), interaction["item_id"].tolist(), strict=True)
        drawn.append(dict(zip(pairs, scores, strict=True)))
    dataset = test_data.dataset
    known = {
        user: set(dataset.token2id("item_id", np.array(sequences[dataset.id2token("user_id", user)][:-1])).tolist())
        for user in range(1, N_USERS + 1)
    }
    kept = {pair: score for pair, score in drawn[0].items() if pair[2] not in known[pair[1]]}
    assert 0 < len(kept) < len(drawn[0])
    assert drawn[1] == pytest.approx(kept, abs=1e-5)
    found, before = ranks_by_user("ranks_without_history"), ranks_by_user("ranks")
    for user, sequence in sequences.items():
        if sequence[-1] in sequence[:-1]:
            assert found[user] == 0
        else:
            assert 0 < found[user] <= before[user] or before[user] == 0
    assert 0 < result["test_result_without_history"]["recall@20"] < 1


def test_a_target_that_is_left_out_is_a_miss_in_a_short_list():
    """RecBole alone would fill the list with items that are left out, and count some as hits."""
    config = make_config("Pop", "ml-100k", {"topk": [5], "valid_metric": "NDCG@5"})
    collector = Collector(config)
    scores = torch.full((4, 8), -torch.inf)
    scores[:, 1:4] = torch.tensor([3.0, 1.0, 2.0])
    rows, targets = torch.arange(4), torch.tensor([1, 2, 0, 7])
    collector.eval_batch_collect(scores, None, rows, targets)
    hits = collector.get_data_struct().get("rec.topk")
    assert hits.tolist() == [[1, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 1], [0] * 5 + [1], [0] * 5 + [1]]


@pytest.mark.parametrize("trainer_class", [None, Trainer])
def test_recboles_own_functions_follow_the_setting(trainer_class, settings):
    """RecBole's trainer gets of a beam all that a list holds, not a beam of which most is left out."""
    settings = settings_of("TIGER", settings, beam_size=N_ITEMS, exclude_history=True)
    result = run_recbole(model="TIGER", dataset="tiny", config_dict=settings)
    (file,) = Path(settings["checkpoint_dir"]).glob("TIGER-*.pth")
    config, model, _, _, _, test_data = load_data_and_model(str(file))
    with leaving_out(test_data, on=False):
        expected = by_hand(model, test_data, read_sequences(settings["data_path"] + "/tiny"), "test")
    for name, value in result["test_result"].items():
        assert value == pytest.approx(metric_per_user(np.array(list(expected.values())), name).mean(), abs=6e-5)
    if trainer_class:
        model.beam_size = 20
        trainer = trainer_class(config, model)
        narrow = trainer.evaluate(test_data, load_best_model=False)
        assert narrow["recall@20"] == pytest.approx(result["test_result"]["recall@20"], abs=0.1)
        with torch.no_grad():
            scores = model.full_sort_predict(next(iter(test_data))[0])
        assert (scores.isfinite().sum(dim=1) == 20).all()


def test_a_run_without_the_setting_keeps_its_key(settings):
    keys = [run_key(experiment.prepare("TIGER", "tiny", {**settings, **more})) for more in ({}, {"exclude_history": False})]
    assert keys[0] == keys[1] != run_key(experiment.prepare("TIGER", "tiny", {**settings, "exclude_history": True}))
    config = experiment.prepare("TIGER", "tiny", settings)
    del config.final_config_dict["exclude_history"]  # as it was before there was the setting
    config["input_hashes"] = None
    assert run_key(config) == keys[0]


def test_a_metric_that_looks_at_no_list(settings):
    more = {"metrics": ["Recall", "GAUC"], "valid_metric": "Recall@10"}
    with pytest.raises(TigerError, match="lists, but GAUC is not computed from lists: leave the metric out"):
        make_config("SASRec", "tiny", settings_of("SASRec", settings, exclude_history=True, **more))
    result, _, _ = run_of("SASRec", settings, **more)
    assert set(result["test_result"]) - set(result["test_result_without_history"]) == {"gauc"}


def days_of(settings, folder, step, by_day=True):
    """A copy of the dataset whose times are days and so many seconds for each item of a day, or else by the clock."""
    path, sequences, later, lines = folder / "tiny", read_sequences(settings["data_path"] + "/tiny"), {}, []
    path.mkdir(parents=True)
    shutil.copy(settings["data_path"] + "/tiny/tiny.item", path)
    rng = np.random.default_rng(0)
    for user, sequence in sequences.items():
        days = np.sort(rng.integers(16000, 16000 + len(sequence), len(sequence)))
        number = ordinals(days) if by_day else np.sort(rng.integers(1, 600, len(sequence)))
        lines += [f"{user}\t{item}\t{day * 86400 + n * step}" for item, day, n in zip(sequence, days, number, strict=True)]
        later[user] = days[-1] > days[-2]
    (path / "tiny.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines) + "\n")
    return later


@pytest.mark.parametrize(("model", "step"), [("SASRec", 128), ("SASRec", 0), ("BPR", 128)])
def test_the_days_of_targets(model, step, settings, tmp_path):
    """Also where the items of a day are numbered by seconds, as in the datasets that are downloaded."""
    later = days_of(settings, tmp_path / "days", step)
    run_of(model, {**settings, "data_path": str(tmp_path / "days")})
    found = read_ranks("results/x.ranks.npz")
    assert found["later_day"].tolist() == [later[user] for user in found["users"]]
    assert 20 < sum(later.values()) < 100


def test_times_by_the_clock_have_no_days(settings, tmp_path):
    days_of(settings, tmp_path / "clock", 128, by_day=False)
    run_of("SASRec", {**settings, "data_path": str(tmp_path / "clock")})
    assert "later_day" not in read_ranks("results/x.ranks.npz")


def test_drawn_targets_have_no_days(settings, tmp_path):
    days_of(settings, tmp_path / "days", 128)
    order = {"split": {"LS": "valid_and_test"}, "order": "RO", "mode": "full"}
    run_of("BPR", {**settings, "data_path": str(tmp_path / "days")}, eval_args=order)
    assert "later_day" not in read_ranks("results/x.ranks.npz")


def test_small_parts():
    assert ordinals(np.array([3, 1, 3, 3, 1])).tolist() == [0, 0, 1, 2, 1]
    assert ordinals(np.array([], dtype=int)).tolist() == []
    assert padded(np.array([0, 0, 2]), np.array([5, 6, 7]), 4).tolist() == [[5, 6], [0, 0], [7, 0], [0, 0]]
    assert padded(np.array([], dtype=int), np.array([], dtype=int), 2).shape == (2, 0)

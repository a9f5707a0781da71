"""RecBole's own functions work with TIGER once the plugin is imported, and as before with its other models."""

import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import load_data_and_model, objective_function, run_recbole
from recbole.trainer import HyperTuning, Trainer
from recbole.utils import get_model, get_trainer, init_logger, init_seed
from recbole.utils.case_study import full_sort_scores, full_sort_topk

from recbole_tiger.errors import TigerError
from recbole_tiger.model.tiger import TIGER
from recbole_tiger.runs import experiment
from recbole_tiger.settings.arguments import parse_arguments
from recbole_tiger.settings.config import make_config
from recbole_tiger.training.checkpoint import load_checkpoint
from recbole_tiger.training.dataset import CatalogueDataset
from recbole_tiger.training.tiger import TIGERTrainer


def built(settings, model="TIGER"):
    """Config, data, model and trainer, by RecBole's functions alone."""
    config = Config(model=model, dataset="tiny", config_dict=dict(settings))
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    data = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    network = get_model(config["model"])(config, data[0]._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, network)
    return config, data, network, trainer


def scores_of(model, data):
    """Scores of all items for all rows of a full-ranking loader, with the rows' true items."""
    model.eval()
    scores, items = [], []
    for interaction, _, _, positive in data:
        scores.append(model.full_sort_predict(interaction.to(model.device)).cpu())
        items.append(positive)
    return torch.cat(scores), torch.cat(items)


# --- settings ---


def test_several_processes_are_refused(settings):
    with pytest.raises(TigerError, match="in one process on one device: leave out nproc"):
        Config(model="TIGER", dataset="tiny", config_dict={**settings, "local_rank": 0, "nproc": 2})


def test_an_empty_gpu_id_is_the_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    config = make_config("Pop", "ml-100k", parse_arguments(["--gpu_id="]))
    assert config["gpu_id"] == os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert config["device"].type == "cpu"


def test_a_model_without_training_is_validated_however_seldom_others_are(data_path):
    config = experiment.prepare("Pop", "tiny", {"data_path": str(data_path), "eval_step": 3, "show_progress": False})
    assert experiment.run(config, "results")["epochs"] == 1


def test_settings_lie_in_layers(settings, tmp_path):
    del settings["codebook_depth"]
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"codebook_depth": 4, "n_layers": 3, "stopping_step": 7}))
    config = Config(model="TIGER", dataset="tiny", config_file_list=[str(file)], config_dict=dict(settings))
    assert config["codebook_size"] == 8  # config_dict over the plugin's 256
    assert config["codebook_depth"] == 4  # the file over the plugin's 3
    assert config["n_layers"] == 1  # config_dict over the file
    assert config["stopping_step"] == 7  # the file over RecBole's and the plugin's
    assert config["beam_size"] == 20  # the plugin's, which RecBole does not have
    assert (config["MAX_ITEM_LIST_LENGTH"], config["valid_metric"]) == (20, "NDCG@10")  # the plugin's over RecBole's
    assert config["ITEM_LIST_LENGTH_FIELD"] == "item_length"  # RecBole's


def test_settings_of_other_models_stay_recboles():
    config = Config(model="SASRec", dataset="ml-100k", config_dict={"train_neg_sample_args": None})
    assert config["MAX_ITEM_LIST_LENGTH"] == 50
    assert config["valid_metric"] == "MRR@10"
    assert config["load_col"] == {"inter": ["user_id", "item_id", "rating", "timestamp"]}
    assert config["codebook_size"] is None


# --- one run ---


@pytest.mark.parametrize("keep", ["first", "last"])
def test_duplicates_go_and_ties_keep_the_order_of_the_file(keep, tmp_path):
    """Many rows of few days, of which a sort that is not stable would mix up the ties."""
    rng = np.random.default_rng(0)
    rows = [(f"u{user}", f"i{rng.integers(40)}", int(rng.integers(3))) for user in range(30) for _ in range(12)]
    (tmp_path / "days").mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (tmp_path / "days/days.inter").write_text("\n".join(lines) + "\n")
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    settings = {"data_path": str(tmp_path), "load_col": columns, "rm_dup_inter": keep}
    dataset = create_dataset(Config(model="BPR", dataset="days", config_dict=settings))
    by_time = sorted(rows, key=lambda row: row[2])
    wanted = {}
    for row in by_time if keep == "first" else reversed(by_time):
        wanted.setdefault(row[:2], row)
    expected = [row for row in by_time if wanted.get(row[:2]) is row]
    users, items = (dataset.id2token(name, dataset.inter_feat[name].to_numpy()) for name in ("user_id", "item_id"))
    found = list(zip(users, items, dataset.inter_feat["timestamp"].astype(int), strict=True))
    assert found == expected


def test_recbole_saves_a_dataset(settings, tmp_path):
    create_dataset(Config(model="BPR", dataset="tiny", config_dict={**settings, "checkpoint_dir": str(tmp_path)})).save()
    assert (tmp_path / "tiny-Dataset.pth").stat().st_size > 0


def test_run_recbole_then_load_data_and_model(settings):
    result = run_recbole(model="TIGER", dataset="tiny", config_dict=dict(settings))
    assert 0 < result["test_result"]["recall@10"] <= 1
    (file,) = Path(settings["checkpoint_dir"]).glob("TIGER-*.pth")

    config, model, dataset, _, valid_data, test_data = load_data_and_model(str(file))
    assert isinstance(model, TIGER)
    assert isinstance(dataset, CatalogueDataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert trainer.evaluate(test_data, load_best_model=False) == result["test_result"]
    assert trainer.evaluate(valid_data, load_best_model=False) == result["best_valid_result"]


def test_loaded_model_scores_as_the_trained_one(settings):
    _, (train_data, valid_data, test_data), model, trainer = built({**settings, "epochs": 1})
    trainer.fit(train_data, valid_data)
    expected, _ = scores_of(model, test_data)
    _, loaded, _, _, _, same_test_data = load_data_and_model(trainer.saved_model_file)
    found, _ = scores_of(loaded, same_test_data)
    assert torch.equal(found, expected)


EARLY = """
from recbole.quick_start import load_data_and_model  # sorted imports bring RecBole first
import sys
import recbole_tiger

file, sys.argv = sys.argv[1], sys.argv[:1]
print(type(load_data_and_model(file)[1]).__name__)
"""


def test_load_data_and_model_imported_before_the_plugin(settings, tmp_path):
    _, (train_data, valid_data, _), _, trainer = built({**settings, "epochs": 1})
    trainer.fit(train_data, valid_data)
    (tmp_path / "early.py").write_text(EARLY)
    done = subprocess.run(
        [sys.executable, "early.py", trainer.saved_model_file], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "TIGER"


def test_evaluate_equals_metrics_by_hand(settings):
    _, (train_data, valid_data, test_data), model, trainer = built({**settings, "metric_decimal_place": 10})
    trainer.fit(train_data, valid_data)
    result = trainer.evaluate(test_data)
    scores, items = scores_of(model, test_data)
    assert len(scores) == 120
    hits = gains = 0
    for row, item in zip(scores.tolist(), items.tolist(), strict=True):
        row[0] = -math.inf
        ranked = sorted(range(len(row)), key=lambda i: -row[i])[:10]
        if item in ranked:
            hits += 1
            gains += 1 / math.log2(ranked.index(item) + 2)
    assert hits > 0
    assert result["recall@10"] == pytest.approx(hits / len(scores))
    assert result["ndcg@10"] == pytest.approx(gains / len(scores))


def test_case_study(settings):
    config, (train_data, valid_data, test_data), model, trainer = built({**settings, "epochs": 1})
    trainer.fit(train_data, valid_data)
    users = test_data.dataset.token2id("user_id", ["u3", "u70"])
    all_scores = full_sort_scores(users, model, test_data, device=config["device"])
    scores, items = full_sort_topk(users, model, test_data, k=5, device=config["device"])
    assert all_scores.shape == (2, 61)
    assert torch.equal(all_scores.gather(1, items), scores)
    assert torch.isfinite(scores).all()
    assert (scores.diff(dim=1) <= 0).all()
    assert (items > 0).all()
    assert [len(set(row)) for row in items.tolist()] == [5, 5]


@pytest.mark.parametrize("mode", ["uni20", "pop20"])
def test_sampled_evaluation_goes_by_predict(settings, mode):
    settings["eval_args"] = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": mode}
    _, (train_data, valid_data, test_data), model, trainer = built(
        {
            **settings,
            "repeatable": True,
            "topk": [5],
            "valid_metric": "NDCG@5",
            "metric_decimal_place": 10,
            "eval_batch_size": 630,
        }
    )
    trainer.fit(train_data, valid_data)

    hits = users = 0
    collect = trainer.eval_collector.eval_batch_collect

    def collect_and_rank(scores, interaction, positive_u, positive_i):
        """Count the hits among the candidates by ``predict``, in the very batch that RecBole evaluates."""
        nonlocal hits, users
        likelihood = model.predict(interaction.to(model.device)).view(len(positive_u), 21).tolist()
        candidates = interaction["item_id"].view(len(positive_u), 21).tolist()
        for row, items, positive in zip(likelihood, candidates, positive_i.tolist(), strict=True):
            assert items[0] == positive
            better = {item for score, item in zip(row, items, strict=True) if score > row[0]}
            hits += len(better) < 5
            users += 1
        return collect(scores, interaction, positive_u, positive_i)

    trainer.eval_collector.eval_batch_collect = collect_and_rank
    result = trainer.evaluate(test_data)
    assert users == 120
    assert hits > 0
    assert result["recall@5"] == pytest.approx(hits / users)


@pytest.mark.parametrize("more", [{}, {"n_user_tokens": 7}], ids=["", "user tokens"])
def test_predict_of_candidates_that_share_histories(settings, more, monkeypatch):
    """Histories with one to many candidates; those of few are not decoded as often as those of many."""
    _, (_, _, test_data), model, _ = built({**settings, **more, "scoring": "exact"})
    model.eval()
    rows = torch.tensor([0] * 30 + [1] * 3 + [2, 3, 4, 5, 0])
    batch = test_data.dataset.inter_feat[rows]
    scores = model.full_sort_predict(test_data.dataset.inter_feat[torch.arange(6)]).view(6, -1)
    batch[model.ITEM_ID] = torch.arange(len(rows)) % 60 + 1
    sizes, levels = [], model.log_probs_of_levels
    monkeypatch.setattr("recbole_tiger.model.tiger.DECODE_BATCH", 1)
    monkeypatch.setattr(model, "log_probs_of_levels", lambda h, s, items: sizes.append(items.numel()) or levels(h, s, items))
    torch.testing.assert_close(model.predict(batch), scores[rows, batch[model.ITEM_ID]], atol=1e-4, rtol=1e-4)
    assert sizes and all(size < 2 * len(rows) for size in sizes)


def test_metrics_over_the_recommended_items(settings):
    settings["metrics"] = ["NDCG", "ItemCoverage"]
    _, (train_data, valid_data, test_data), model, trainer = built(settings)
    trainer.fit(train_data, valid_data)
    result = trainer.evaluate(test_data)
    scores, _ = scores_of(model, test_data)
    top = scores[:, 1:].topk(10).indices
    # RecBole counts the padding item among the items.
    assert result["itemcoverage@10"] == pytest.approx(len(top.unique()) / 61, abs=1e-4)
    assert trainer.evaluate(test_data) == result


def test_objective_function(settings):
    result = objective_function({**settings, "model": "TIGER", "dataset": "tiny", "epochs": 1})
    assert result["model"] == "TIGER"
    assert set(result["best_valid_result"]) == set(result["test_result"])
    assert result["best_valid_score"] == result["best_valid_result"]["ndcg@10"]


TRIALS = """
import json, sys
import ray
from ray import tune
from recbole.quick_start import objective_function

shared = json.load(open("settings.json"))


def trial(chosen):
    import recbole_tiger  # a trial is a process of its own

    objective_function({**shared, **chosen})


ray.init(address="local")
space = {"codebook_size": tune.grid_search([4, 8])}
results = tune.Tuner(trial, param_space=space, run_config=tune.RunConfig(storage_path=sys.argv[1], verbose=0)).fit()
print("RESULT" + json.dumps({result.config["codebook_size"]: result.metrics["ndcg@10"] for result in results}))
"""


def test_objective_function_reports_to_ray_tune(settings, tmp_path):
    """RecBole's way to a search by Ray, as its documents have it; outside of a trial a report says nothing."""
    shared = {**settings, "model": "TIGER", "dataset": "tiny", "epochs": 1}
    results = {size: objective_function({**shared, "codebook_size": size})["test_result"] for size in (4, 8)}
    expected = {str(size): result["ndcg@10"] for size, result in results.items()}
    (tmp_path / "settings.json").write_text(json.dumps(shared))
    (tmp_path / "trials.py").write_text(TRIALS)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "trials.py", str(tmp_path / "ray")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.partition("RESULT")[2].splitlines()[0]) == expected


def test_hyper_tuning(settings, tmp_path):
    pytest.importorskip("hyperopt", reason="RecBole's HyperTuning needs hyperopt: pip install recbole-tiger[hyperopt]")
    (tmp_path / "fixed.yaml").write_text(yaml.safe_dump({**settings, "model": "TIGER", "dataset": "tiny", "epochs": 1}))
    tuning = HyperTuning(
        objective_function,
        params_dict={"choice": {"codebook_size": [4, 8], "n_layers": [1]}},
        fixed_config_file_list=[str(tmp_path / "fixed.yaml")],
    )
    tuning.run()
    assert set(tuning.params2result) == {f"codebook_size:{size}, n_layers:1" for size in (4, 8)}
    scores = {params: result["best_valid_score"] for params, result in tuning.params2result.items()}
    assert tuning.best_score == max(scores.values())
    assert scores[f"codebook_size:{tuning.best_params['codebook_size']}, n_layers:1"] == tuning.best_score
    sizes = {np.load(file)["semantic_ids"][:, 0].max() + 1 for file in (tmp_path / "cache").glob("quantized-*.npz")}
    assert sizes == {4, 8}  # the settings reached the model


# --- checkpoints ---


@pytest.mark.parametrize("name", ["TIGER", "EASE"])
def test_checkpoints_travel_between_numpy_1_and_2(name, settings, tmp_path, data_path):
    """Their pickles differ in the name of a module of NumPy's alone."""
    if name == "TIGER":
        _, (train_data, valid_data, _), _, trainer = built({**settings, "epochs": 1})
        trainer.fit(train_data, valid_data)
        # As the settings of a user may hold them; TIGER's own state holds no value of NumPy.
        trainer.config["learning_rate"] = np.float64(0.001)
        trainer._save_checkpoint(0, verbose=False)
        file = Path(trainer.saved_model_file)
    else:
        own = {"data_path": str(data_path), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1, "show_progress": False}
        run_recbole(model=name, dataset="tiny", config_dict=own, saved=True)
        (file,) = (tmp_path / "saved").glob(f"{name}-*.pth")
    names = (b"numpy.core.multiarray", b"numpy._core.multiarray")
    own_name = names[np.__version__ >= "2"]
    found = {}
    for module in names:
        other = tmp_path / f"{name}-{module.decode()}.pth"
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(other, "w") as written:
            for entry in archive.infolist():
                content = archive.read(entry)
                if entry.filename.endswith("data.pkl"):
                    assert own_name in content
                    content = content.replace(own_name, module)
                written.writestr(entry, content)
        state = load_checkpoint(other)
        found[module] = state["config"]["learning_rate"], str(state["other_parameter"])
        _, model, *_ = load_data_and_model(str(other))
        assert type(model).__name__ == name
    assert found[names[0]] == found[names[1]]


def test_resume_checkpoint_ends_as_the_uninterrupted_run(settings, tmp_path):
    settings |= {"epochs": 4, "stopping_step": 10}
    _, (train_data, valid_data, test_data), model, trainer = built(settings)

    def keep_state_of_epoch_1(epoch, score):
        if epoch == 2:
            shutil.copy(trainer.state_file, tmp_path / "kept.pth")

    best = trainer.fit(train_data, valid_data, callback_fn=keep_state_of_epoch_1)
    tested = trainer.evaluate(test_data)

    _, (train_data, valid_data, test_data), again, trainer = built(settings)
    trainer.resume_checkpoint(tmp_path / "kept.pth")
    assert trainer.start_epoch == 2
    assert trainer.fit(train_data, valid_data) == best
    assert trainer.evaluate(test_data) == tested
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_recboles_own_trainer_trains_saves_and_resumes(settings, tmp_path):
    """``recbole.trainer.Trainer`` itself, on the dataset's ordinary rows."""
    config, (train_data, valid_data, test_data), model, trainer = built(settings)
    assert type(trainer) is TIGERTrainer
    trainer = Trainer(config, model)
    trainer.fit(train_data, valid_data)
    assert trainer.train_loss_dict[1] < trainer.train_loss_dict[0]
    trainer._save_checkpoint(1, saved_model_file=str(tmp_path / "own.pth"))

    config, _, again, _ = built(settings)
    resumed = Trainer(config, again)
    resumed.resume_checkpoint(tmp_path / "own.pth")
    assert resumed.start_epoch == 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert resumed.optimizer.state_dict()["state"].keys() == trainer.optimizer.state_dict()["state"].keys()
    assert resumed.evaluate(test_data, load_best_model=False) == trainer.evaluate(test_data, load_best_model=False)


# --- other models ---

OTHERS = {
    "SASRec": {"train_neg_sample_args": None, "n_layers": 1},
    "GRU4Rec": {"train_neg_sample_args": None},
    "BERT4Rec": {"train_neg_sample_args": None, "n_layers": 1},
    "LightGCN": {"valid_metric": "NDCG@10", "metrics": ["Recall", "NDCG"]},
    "FDSA": {"train_neg_sample_args": None, "selected_features": ["brand"], "n_layers": 1},
    # Their checkpoints hold matrices of NumPy and SciPy.
    **{name: {"valid_metric": "NDCG@10", "metrics": ["Recall", "NDCG"]} for name in ("ItemKNN", "EASE", "SLIMElastic")},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_train_save_and_load(name, tmp_path, data_path):
    settings = {
        "data_path": str(data_path),
        "checkpoint_dir": str(tmp_path / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brand"]},
        "epochs": 1,
        "show_progress": False,
        **OTHERS[name],
    }
    result = run_recbole(model=name, dataset="tiny", config_dict=settings, saved=True)
    (file,) = (tmp_path / "saved").glob(f"{name}-*.pth")
    config, model, _, _, _, test_data = load_data_and_model(str(file))
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    assert trainer.evaluate(test_data, load_best_model=False) == result["test_result"]
    trainer.resume_checkpoint(file)
    assert trainer.start_epoch == 1


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_tiger_and_another_model_in_one_process(settings, first):
    """What reading one model's checkpoint allows does not take away what the other's needs."""
    own = {key: settings[key] for key in ("data_path", "checkpoint_dir", "show_progress")}
    own |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_neg_sample_args": None, "epochs": 1}
    runs = [("SASRec", own), ("TIGER", {**settings, "epochs": 1})]
    for name, config_dict in runs if first else runs[::-1]:
        run_recbole(model=name, dataset="tiny", config_dict=dict(config_dict))
    for name, _ in runs:
        (file,) = Path(settings["checkpoint_dir"]).glob(f"{name}-*.pth")
        torch.load(file, weights_only=True)


DRIVER = """
import json, sys
if json.load(open("settings.json"))["plugin"]:
    import recbole_tiger
else:  # RecBole alone does not run on NumPy 2
    import numpy as np
    np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_
from recbole.config import Config
from recbole.quick_start import run_recbole

settings = json.load(open("settings.json"))["settings"]
assert ("recbole_tiger" in sys.modules) == json.load(open("settings.json"))["plugin"]
config = Config(model="SASRec", dataset="tiny", config_dict=dict(settings))
result = run_recbole(model="SASRec", dataset="tiny", config_dict=settings, saved=False)
shown = {key: str(value) for key, value in config.final_config_dict.items()}
print("RESULT" + json.dumps([result, shown], sort_keys=True))
"""


def test_import_leaves_another_model_unchanged(tmp_path, data_path):
    """saved=False: without the plugin RecBole cannot read the checkpoint that it writes, on PyTorch >= 2.6."""
    (tmp_path / "driver.py").write_text(DRIVER)
    settings = {
        "data_path": str(data_path),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "train_neg_sample_args": None,
        "metric_decimal_place": 10,
        "epochs": 1,
        "show_progress": False,
    }
    found = []
    for plugin in (False, True):
        (tmp_path / "settings.json").write_text(json.dumps({"settings": settings, "plugin": plugin}))
        done = subprocess.run([sys.executable, "driver.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.partition("RESULT")[2].splitlines()[0]))
    (without, without_config), (with_plugin, with_config) = found
    assert without["test_result"]["ndcg@10"] > 0
    assert with_plugin == without
    assert with_config == without_config


@pytest.mark.parametrize(
    ("imports", "detects"),
    [
        ("get_model('SASRec')", True),
        ("import recbole_tiger; get_model('SASRec')", False),
        ("get_model('SASRec'); import recbole_tiger", False),
        ("torch.autograd.set_detect_anomaly(True); import recbole_tiger; get_model('SASRec')", True),
    ],
)
def test_no_model_switches_anomaly_detection_on(imports, detects):
    code = f"import torch; from recbole.utils import get_model; {imports}; print('ANOMALY', torch.is_anomaly_enabled())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"ANOMALY {detects}" in done.stdout

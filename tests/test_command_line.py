"""The commands run, compare, tokenize and recommend, as a user calls them; tune is in test_tuning.py."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from itertools import dropwhile, takewhile
from pathlib import Path

import numpy as np
import pytest
import yaml

from recbole_tiger import Recommender, SemanticIDs, __version__, cli
from recbole_tiger.cli import COMMANDS, main
from recbole_tiger.commands.shared import warn_unread
from recbole_tiger.report.results import read_ranks, read_results
from recbole_tiger.report.statistics import metric_per_user
from recbole_tiger.runs import experiment
from recbole_tiger.settings.arguments import parse_arguments
from recbole_tiger.settings.identity import run_inputs, run_key
from recbole_tiger.settings.properties import unread
from tests.conftest import data_of, read_sequences, small_settings, write_dataset

# What benchmarks/results/README.md says a result file holds.
FIELDS = {
    *("schema", "model", "label", "dataset", "seed", "best_valid_score", "valid_score_bigger", "best_valid_result"),
    *(
        "test_result",
        "intervals",
        "test_result_without_history",
        "intervals_without_history",
        "epochs",
        "best_epoch",
        "still_improving",
        "out_of_time",
        "prepare_seconds",
        "train_seconds",
        "eval_seconds",
    ),
    *(
        "eval_users_per_second",
        "parameters",
        "epoch_log",
        "settings",
        "data_hash",
        "inputs",
        "versions",
        "hardware",
        "checkpoint",
        "ranks",
    ),
}


def arguments(settings):
    """Settings as --key=value; JSON is YAML."""
    return [f"--{key}={json.dumps(value)}" for key, value in settings.items()]


def files_under(folder):
    """Every file under a folder with its content; logs, which any run writes, aside."""
    return {
        str(file): file.read_bytes()
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file() and not {"log", "log_tensorboard"} & set(file.relative_to(folder).parts)
    }


def rows_of(table):
    """The rows of the first table of an output: first column -> the other columns."""
    lines = dropwhile(lambda line: not line.startswith("|"), table.splitlines())
    first = takewhile(lambda line: line.startswith("|"), lines)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in first]
    return {row[0]: row[1:] for row in cells[2:]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_path):
    """A folder where the command run has trained TIGER for an epoch; its settings and its result."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {**small_settings(folder, data_path), "epochs": 1}
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["run", "--model=TIGER", "--dataset=tiny", *arguments(settings)]) == 0
    finally:
        os.chdir(before)
    (result,) = read_results(folder / "results")
    return folder, settings, result


def run_again(trained, monkeypatch, *more):
    """The command run of ``trained`` once more, in its folder."""
    folder, settings, _ = trained
    monkeypatch.chdir(folder)
    return main(["run", "--model=TIGER", "--dataset=tiny", *arguments(settings), *more])


# --- help and version ---


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^example:\n  recbole-tiger {name}\b", shown, flags=re.MULTILINE)


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^    {name} ", shown, flags=re.MULTILINE) for name in COMMANDS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash is here")
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["rec"], ["recommend"]),
        (["recommend", "--hist"], ["--history", "--histories"]),
        (["tune", "--search", ""], ["random", "hyperopt"]),
        (["recommend", "--checkpoint", "mi"], ["mine.pth"]),
    ],
    ids=" ".join,
)
def test_completion(words, found, capsys):
    with pytest.raises(SystemExit) as done:
        main(["--print-completion", "bash"])
    assert done.value.code == 0
    script = capsys.readouterr().out
    Path("mine.pth").touch()
    script += f"COMP_WORDS=(recbole-tiger {shlex.join(words)}); COMP_CWORD={len(words)}; _shtab_recbole_tiger\n"
    script += 'echo "${COMPREPLY[@]}"\n'
    shown = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True).stdout
    assert shown.split() == found


def test_version_of_the_module():
    done = subprocess.run([sys.executable, "-m", "recbole_tiger", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, __version__)


def test_a_mistake_ends_the_process_with_status_2():
    command = [sys.executable, "-m", "recbole_tiger", "run", "--model=SASRecc", "--dataset=tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "recbole-tiger: error: unknown model 'SASRecc'; did you mean SASRec?\n"


# --- run ---


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_while_the_arguments_are_read(monkeypatch, capsys, number, status, word):
    """The moment was found by killing commands at random ones."""
    monkeypatch.setattr(cli, "make_parser", lambda: signal.raise_signal(number))
    assert main(["run"]) == status
    assert capsys.readouterr().err == f"recbole-tiger: {word}\n"


def test_run_writes_the_documented_result(trained):
    folder, settings, result = trained
    assert set(result) == {*FIELDS, "semantic_ids"}
    assert (result["model"], result["label"], result["dataset"], result["epochs"]) == ("TIGER", "TIGER", "tiny", 1)
    assert set(result["test_result"]) == {f"{metric}@{k}" for metric in ("recall", "ndcg", "mrr") for k in (5, 10, 20)}
    assert 0 < result["test_result"]["recall@20"] <= 1
    assert result["best_valid_score"] == result["best_valid_result"]["ndcg@10"] == result["epoch_log"][0]["valid_score"]
    assert set(result["intervals"]) == set(result["test_result"])
    low, high = result["intervals"]["recall@20"]
    assert low < result["test_result"]["recall@20"] < high
    assert result["best_epoch"] == 0
    assert result["still_improving"] is True
    assert result["semantic_ids"]["items"] == 60
    assert result["settings"]["codebook_size"] == settings["codebook_size"]
    recommender = Recommender.load(folder / result["checkpoint"])
    assert result["parameters"] == sum(p.numel() for p in recommender.model.parameters())


def test_resume_of_a_finished_run_does_nothing(trained, monkeypatch, capsys):
    folder, _, result = trained
    before = files_under(folder)
    assert run_again(trained, monkeypatch, "--resume") == 0
    assert files_under(folder) == before
    shown = capsys.readouterr().out
    (file,) = (folder / "results").glob("*.json")
    assert f"TIGER on tiny: already run, results/{file.name}" in shown
    assert rows_of(shown)["TIGER"][0] == f"{result['test_result']['recall@5']:.4f}"
    without = rows_of(shown[shown.index("history left out:") :])["TIGER"]
    assert without[0] == f"{result['test_result_without_history']['recall@5']:.4f}"
    assert result["checkpoint"] in shown


def test_resume_may_stand_in_a_config_file(trained, monkeypatch, capsys, tmp_path):
    (tmp_path / "again.yaml").write_text("resume: True\n")
    before = files_under(trained[0])
    assert run_again(trained, monkeypatch, f"--config_files={tmp_path / 'again.yaml'}") == 0
    assert "already run" in capsys.readouterr().out
    assert files_under(trained[0]) == before


@pytest.mark.parametrize("model", ["Pop", "SASRec", "FPMC", "BERT4Rec"])
def test_ranks_tell_the_metrics(settings, capsys, model):
    data = [f"--{key}={settings[key]}" for key in ("data_path", "checkpoint_dir", "show_progress")]
    assert main(["run", f"--model={model}", "--dataset=tiny", "--epochs=2", *data]) == 0
    (result,) = read_results("results")
    check_ranks(result, "results")
    (file,) = Path("results").glob("*.json")
    assert f"result: {file}\n" in capsys.readouterr().out


def test_ranks_tell_the_metrics_of_tiger(trained):
    check_ranks(trained[2], trained[0] / "results")


def check_ranks(result, folder):
    """RecBole's metrics follow from the ranks, which are told for every user of the dataset once."""
    found = read_ranks(Path(folder) / result["ranks"])
    users, ranks = found["users"], found["ranks"]
    assert sorted(users) == sorted(f"u{i}" for i in range(120))
    assert ranks.max() <= 20
    for name, value in result["test_result"].items():
        assert round(metric_per_user(ranks, name).mean(), 4) == value, name


def test_ranks_belong_to_their_users(settings):
    """Pop gives everybody one list, so the rank of a user's last item is known."""
    data = [f"--{key}={settings[key]}" for key in ("data_path", "checkpoint_dir", "show_progress")]
    # RecBole's Pop counts the sampled negatives too, and an item once a batch, however often it is there.
    exact = ["--train_batch_size=1", "--train_neg_sample_args=~"]
    assert main(["run", "--model=Pop", "--dataset=tiny", *exact, *data]) == 0
    (result,) = read_results("results")
    sequences = read_sequences(Path(settings["data_path"]) / "tiny")
    counts = Counter(item for items in sequences.values() for item in items[:-2])
    found = read_ranks(f"results/{result['ranks']}")
    for user, rank in zip(found["users"], found["ranks"], strict=True):
        target = counts[sequences[user][-1]]
        more = sum(count > target for count in counts.values())
        as_many = sum(count >= target for count in counts.values())
        assert more < rank <= as_many or (rank == 0 and as_many > 20)


def test_no_ranks_where_a_user_has_several_targets(settings):
    data = [f"--{key}={settings[key]}" for key in ("data_path", "checkpoint_dir", "show_progress")]
    split = "--eval_args={split: {RS: [0.6,0.2,0.2]}, group_by: user, order: TO, mode: full}"
    assert main(["run", "--model=Pop", "--dataset=tiny", split, *data]) == 0
    (result,) = read_results("results")
    assert result["ranks"] is None
    assert not list(Path("results").glob("*.npz"))


def test_a_run_without_lists(settings, capsys):
    """GAUC ranks each user's target and has no list, so there are no ranks, and no test with the history left out."""
    plain = {key: settings[key] for key in ("data_path", "checkpoint_dir", "show_progress")}
    plain |= {"epochs": 1, "metrics": ["GAUC"], "valid_metric": "GAUC"}
    assert main(["run", "--model=SASRec", "--dataset=tiny", *arguments(plain)]) == 0
    (result,) = read_results("results")
    assert result["ranks"] is None and "test_result_without_history" not in result
    assert main(["leaderboard"]) == 0
    assert f"{result['test_result']['gauc']:.4f}" in rows_of(capsys.readouterr().out)["SASRec"]


def test_a_dataset_of_one_user(tmp_path, settings, capsys):
    folder = write_dataset(tmp_path / "data", n_users=1)
    settings |= {"data_path": str(tmp_path / "data"), "item_embeddings": str(folder / "embeddings.npz")}
    assert main(["run", "--model=TIGER", "--dataset=tiny", *arguments(settings)]) == 0
    (result,) = read_results("results")
    assert read_ranks(Path("results") / result["ranks"])["users"].tolist() == ["u0"]
    assert main(["leaderboard", "--plots=plots"]) == 0
    assert "tiny-parameters.png" in capsys.readouterr().err


def test_no_ranks_where_a_user_has_several_rows(settings):
    """They are no sample of users, which intervals are made of."""
    eval_args = {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "TO", "mode": "full"}
    assert main(["run", "--model=TIGER", "--dataset=tiny", *arguments({**settings, "eval_args": eval_args})]) == 0
    (result,) = read_results("results")
    assert result["ranks"] is None
    assert not list(Path("results").glob("*.npz"))
    assert result["test_result"]["recall@10"] > 0


@pytest.mark.parametrize("eval_step", [1, 2])
@pytest.mark.parametrize("model", ["SASRec", "TIGER"])
def test_training_ends_when_time_is_up(settings, model, eval_step):
    """After the first epoch that is validated, because a result needs one."""
    if model == "SASRec":
        settings = {key: settings[key] for key in ("data_path", "checkpoint_dir", "show_progress")}
    settings = {**settings, "epochs": 9, "eval_step": eval_step, "max_minutes": 0.00001}
    assert main(["run", f"--model={model}", "--dataset=tiny", *arguments(settings)]) == 0
    (result,) = read_results("results")
    assert (result["epochs"], result["out_of_time"], result["still_improving"]) == (eval_step, True, True)
    assert result["best_valid_score"] == result["epoch_log"][-1]["valid_score"]
    assert Path(result["checkpoint"]).is_file()
    check_ranks(result, "results")


def test_baselines_that_begin_in_one_second_keep_their_checkpoints_apart(settings):
    plain = {"data_path": settings["data_path"], "checkpoint_dir": settings["checkpoint_dir"], "show_progress": False}
    files = set()
    for seed in (1, 2):
        config = experiment.prepare("SASRec", "tiny", {**plain, "seed": seed})
        trainer = experiment.make_trainer(config, experiment.load(config)[0])
        files.add(re.sub(r"-\w{3}-\d\d-\d{4}_[\d-]{8}", "", trainer.saved_model_file))  # without the time
    assert len(files) == 2


def test_run_without_resume_runs_again(settings, capsys):
    call = ["run", "--model=Pop", "--dataset=tiny", f"--data_path={settings['data_path']}", "--show_progress=False"]
    assert main(call) == 0
    (first,) = read_results("results")
    assert rows_of(capsys.readouterr().out)["Pop"][0] == f"{first['test_result']['recall@5']:.4f}"
    assert set(first) == FIELDS
    assert main(call) == 0
    assert "already run" not in capsys.readouterr().out
    (second,) = read_results("results")
    assert second["test_result"] == first["test_result"]
    assert second["epoch_log"] != first["epoch_log"]  # the seconds differ


# --- compare ---


def test_compare(settings, capsys, tmp_path):
    small = {**settings, "epochs": 1, "embedding_size": 16}
    call = ["compare", "--models=GRU4Rec,SASRec,TIGER", "--dataset=tiny", "--results_dir=found", *arguments(small)]
    assert main(call) == 0
    shown = capsys.readouterr().out
    table = rows_of(shown)
    assert set(table) == {"GRU4Rec", "SASRec", "TIGER"}
    assert "already run" not in shown
    results = {result["label"]: result for result in read_results("found")}
    assert set(results) == set(table)
    for name, row in table.items():
        expected = [results[name]["test_result"][f"{metric}@{k}"] for metric in ("recall", "ndcg") for k in (5, 10, 20)]
        assert [cell.rstrip("†") for cell in row[:6]] == [f"{value:.4f}" for value in expected]
        assert f"checkpoint of {name}: {results[name]['checkpoint']}\n" in shown
        assert Path(results[name]["checkpoint"]).is_file()
    order = [results[name]["best_valid_score"] for name in table]
    assert order == sorted(order, reverse=True)
    for key in ("topk", "valid_metric", "eval_args", "MAX_ITEM_LIST_LENGTH", "load_col", "seed"):
        assert results["SASRec"]["settings"][key] == results["TIGER"]["settings"][key] == results["GRU4Rec"]["settings"][key]

    before = files_under(tmp_path)
    assert main(call) == 0
    again = capsys.readouterr().out
    assert files_under(tmp_path) == before
    for name in table:
        assert f"{name} on tiny: already run, " in again
    assert rows_of(again) == table

    assert main([*call, "--html=page.html"]) == 0
    ((of_page, *_),) = [data_of("page.html")["tables"]]
    assert {row["label"] for row in of_page["rows"]} == set(table)
    assert of_page["occurrences"]["users"]


def test_compare_limits_the_epochs_on_the_sample():
    """Of RecBole's ml-100k, not of the user's own dataset of this name."""
    budget = yaml.safe_load(Path(experiment.__file__).parents[2].joinpath("properties/budget/ml-100k.yaml").read_text())
    for name, limits in budget.items():
        assert experiment.budget(name, "ml-100k", {}) == limits != {}
    write_dataset("data", "ml-100k")
    assert experiment.budget("SASRec", "ml-100k", {"data_path": "data"}) == {}
    small = ["--hidden_size=8", "--inner_size=8", "--n_layers=1", "--n_heads=1", "--valid_users=50", "--show_progress=False"]
    for more, epochs in (([], budget["SASRec"]["epochs"]), (["--epochs=2"], 2)):
        assert main(["compare", "--models=SASRec", "--dataset=ml-100k", f"--results_dir=r{epochs}", *small, *more]) == 0
        (result,) = read_results(f"r{epochs}")
        assert result["epochs"] == epochs


# --- settings ---


def test_config_files_lie_in_layers(settings, tmp_path):
    (tmp_path / "a.yaml").write_text("codebook_size: 4\ncodebook_depth: 1\nseed: 11\n")
    (tmp_path / "b.yaml").write_text("codebook_size: 5\ncodebook_depth: 2\n")
    base = {key: value for key, value in settings.items() if not key.startswith("codebook")}
    files = [f"--config_files={tmp_path / 'a.yaml'},{tmp_path / 'b.yaml'}"]
    call = ["tokenize", "--dataset=tiny", *arguments(base), "--codebook_size=6"]
    assert main([*call, *files, "--output=ids.tsv"]) == 0
    codes = SemanticIDs.load("ids.tsv").codes
    assert codes.shape == (60, 3)  # depth 2 of the later file, and the collision level
    assert len(np.unique(codes[:, 0])) == 6  # the command line over both
    assert main([*call, *files, "--output=other.tsv", "--seed=12"]) == 0
    assert not np.array_equal(SemanticIDs.load("other.tsv").codes, codes)
    assert main([*call, *files, "--output=same.tsv", "--seed=11"]) == 0  # the seed of the earlier file was in force
    assert np.array_equal(SemanticIDs.load("same.tsv").codes, codes)
    files = [f"--config_files={tmp_path / name}" for name in ("a.yaml", "b.yaml")]
    assert main([*call, *files, "--output=one-by-one.tsv"]) == 0
    assert np.array_equal(SemanticIDs.load("one-by-one.tsv").codes, codes)


def test_values_are_yaml():
    assert parse_arguments(
        [
            "--topk=[5,10]",
            "--text_fields=[title,brand]",
            "--learning_rate=1e-3",
            "--weight_decay=5E-2",
            "--label=a=b=c",
            "--eval_args={split: {LS: valid_and_test}, mode: full}",
            "--show_progress=False",
            "--load_col=~",
            "--epochs=3",
            "--user_inter_num_interval=[5,inf)",
        ]
    ) == {
        "topk": [5, 10],
        "text_fields": ["title", "brand"],
        "learning_rate": 0.001,
        "weight_decay": 0.05,
        "label": "a=b=c",
        "eval_args": {"split": {"LS": "valid_and_test"}, "mode": "full"},
        "show_progress": False,
        "load_col": None,
        "epochs": 3,
        "user_inter_num_interval": "[5,inf)",
    }


def test_what_eval_args_do_not_name_is_the_protocols(data_path):
    for model in ("TIGER", "SASRec", "Pop"):
        config = experiment.prepare(model, "tiny", {"data_path": str(data_path), "eval_args": {"mode": "uni100"}})
        found = config["eval_args"]
        assert found["split"] == {"LS": "valid_and_test"}
        assert found["order"] == "TO"
        assert found["mode"] == {"valid": "uni100", "test": "uni100"}


def test_a_model_of_knowledge_gets_its_files():
    call = ["run", "--model=CKE", "--dataset=ml-100k", "--epochs=1", "--show_progress=False"]
    assert main([*call, "--user_inter_num_interval=[0,30)"]) == 0
    (result,) = read_results("results")
    assert set(result["settings"]["load_col"]) == {"inter", "item", "kg", "link"}
    assert result["epochs"] == 1
    # Its tables are those of other models, whose interactions and items are the same.
    other = run_inputs(experiment.prepare("SASRec", "ml-100k", {}))
    assert result["data_hash"] == other["data_hash"]
    assert len(result["inputs"]) == len(other["inputs"]) + 2


def test_values_reach_the_run(settings):
    more = ["--topk=[2,3]", "--valid_metric=NDCG@3", "--label=a=b", "--learning_rate=1e-3", "--metrics=[NDCG]"]
    data = [f"--{key}={settings[key]}" for key in ("data_path", "checkpoint_dir", "show_progress")]
    assert main(["run", "--model=SASRec", "--dataset=tiny", "--epochs=1", "--n_layers=1", *data, *more]) == 0
    (result,) = read_results("results")
    assert result["label"] == "a=b"
    assert set(result["test_result"]) == {"ndcg@2", "ndcg@3"}
    assert result["settings"]["learning_rate"] == 0.001
    assert result["settings"]["topk"] == [2, 3]
    assert result["settings"]["MAX_ITEM_LIST_LENGTH"] == 20  # the protocol's, not RecBole's 50


# --- tokenize ---


def test_tokenize(settings, capsys):
    assert main(["tokenize", "--dataset=tiny", *arguments(settings), "--output=ids.tsv"]) == 0
    shown = capsys.readouterr().out
    ids = SemanticIDs.load("ids.tsv")
    assert set(ids.items) == {f"i{i}" for i in range(60)}
    statistics = ids.statistics()
    levels = rows_of(shown)
    for level in range(2):
        found = [float(cell) for cell in levels[str(level + 1)]]
        assert found == [statistics[name][level] for name in ("used_codes", "perplexity", "distinct_prefixes")]
    assert re.search(rf"^collision_rate +{statistics['collision_rate']:g}$", shown, flags=re.MULTILINE)
    assert re.search(rf"^distinct_ids +{statistics['distinct_ids']}$", shown, flags=re.MULTILINE)
    # The examples are items that do share a prefix, with their titles.
    examples = re.findall(r"^\| \((\d+), \d+, \d+\) +\| i(\d+) +\| The \w+ number (\d+) ", shown, flags=re.MULTILINE)
    assert len(examples) >= 4
    for prefix, item, number in examples:
        assert item == number
        assert ids.codes[ids.items.index(f"i{item}"), 0] == int(prefix)
    assert main(["tokenize", "--dataset=tiny", *arguments(settings), "--html=page.html"]) == 0
    assert data_of("page.html")
    # They are the semantic IDs that training uses: the file can be given back.
    assert main(["tokenize", "--dataset=tiny", *arguments(settings), "--semantic_ids=ids.tsv", "--output=same.tsv"]) == 0
    assert Path("same.tsv").read_bytes() == Path("ids.tsv").read_bytes()


def test_tokenize_reads_an_edited_title(settings, tmp_path):
    """It is another input of a run, too."""
    folder = write_dataset(tmp_path / "data")
    settings = {**settings, "data_path": str(tmp_path / "data"), "item_embeddings": None}
    keys = []
    for _ in range(2):
        assert main(["tokenize", "--dataset=tiny", *arguments(settings)]) == 0
        keys.append(run_key(experiment.prepare("TIGER", "tiny", settings)))
        (folder / "tiny.item").write_text((folder / "tiny.item").read_text().replace("The soap number 2\t", "A thing\t"))
    assert keys[0] != keys[1]
    for kind in ("embeddings", "quantized"):
        assert len(list(Path(settings["cache_dir"]).glob(f"{kind}-*.npz"))) == 2


def test_tokenize_does_not_warn_of_what_it_leaves_out_itself(settings, capsys):
    assert main(["tokenize", "--dataset=tiny", "--output=ids.tsv", *arguments(settings)]) == 0
    capsys.readouterr()
    given = {"data_path": settings["data_path"], "semantic_ids": "ids.tsv"}
    assert main(["tokenize", "--model=VQRec", "--dataset=tiny", *arguments(given)]) == 0
    assert "settings without effect" not in capsys.readouterr().err


def test_tokenize_shows_no_prefix_that_no_items_share(settings, capsys):
    assert main(["tokenize", "--dataset=tiny", *arguments({**settings, "quantizer": "atomic"})]) == 0
    shown = capsys.readouterr()
    assert re.search(r"^distinct_ids +60$", shown.out, flags=re.MULTILINE)
    assert "share a prefix" not in shown.out
    assert "settings without effect on atomic: codebook_depth, codebook_size" in shown.err


def test_tokenize_by_a_recipe(settings, capsys):
    own = {key: value for key, value in settings.items() if key != "quantizer"}
    for model, quantizer in (("TIGER-rq-kmeans", "rq_kmeans"), ("TIGER-random", "random")):
        assert main(["tokenize", f"--model={model}", "--dataset=tiny", "--output=by-recipe.tsv", *arguments(own)]) == 0
        call = ["tokenize", "--dataset=tiny", "--output=by-setting.tsv", f"--quantizer={quantizer}", *arguments(own)]
        assert main(call) == 0
        assert Path("by-recipe.tsv").read_bytes() == Path("by-setting.tsv").read_bytes()
    capsys.readouterr()
    assert main(["tokenize", "--model=SASRec", "--dataset=tiny", f"--data_path={settings['data_path']}"]) == 2
    assert "SASRec has no semantic IDs" in capsys.readouterr().err


# --- recommend ---


def test_recommend_a_history(trained, capsys):
    folder, _, result = trained
    checkpoint = folder / result["checkpoint"]
    assert main(["recommend", f"--checkpoint={checkpoint}", "--history=i1, i7,i13", "--k=4"]) == 0
    table = rows_of(capsys.readouterr().out)
    expected = Recommender.load(checkpoint).recommend(["i1", "i7", "i13"], k=4)
    assert table == {
        str(rank): [row["item"], row["title"], f"{row['score']:.4f}"] for rank, row in enumerate(expected, start=1)
    }
    assert all(row["title"].endswith(f"number {row['item'][1:]}") for row in expected)


@pytest.mark.parametrize(
    ("options", "how"),
    [
        (["--scoring=exact"], {"scoring": "exact"}),
        (["--beam_size=60"], {"beam_size": 60}),
        (["--among=among.txt"], {"among": ["i3", "i4", "i5", "i6"]}),
        (["--temperature=2"], {"temperature": 2.0}),
        (["--temperature=2", "--seed=5"], {"temperature": 2.0, "seed": 5}),
    ],
    ids=str,
)
def test_options_of_recommend(trained, capsys, options, how):
    folder, _, result = trained
    checkpoint = folder / result["checkpoint"]
    Path("among.txt").write_text("i3\ni4\n\ni5\ni6\n")
    assert main(["recommend", f"--checkpoint={checkpoint}", "--history=i1,i7", "--k=4", *options]) == 0
    expected = Recommender.load(checkpoint).recommend(["i1", "i7"], k=4, **how)
    found = [[row[0], float(row[2])] for row in rows_of(capsys.readouterr().out).values()]
    assert found == [[row["item"], pytest.approx(row["score"], abs=1e-4)] for row in expected]


def test_recommend_can_leave_out_the_history(trained, capsys):
    folder, _, result = trained
    call = ["recommend", f"--checkpoint={folder / result['checkpoint']}", "--k=5"]
    assert main([*call, "--history=i1,i7"]) == 0
    best = [row[0] for row in rows_of(capsys.readouterr().out).values()]
    history = best[:2]
    assert main([*call, f"--history={','.join(history)}", "--exclude_history"]) == 0
    left = [row[0] for row in rows_of(capsys.readouterr().out).values()]
    assert main([*call, f"--history={','.join(history)}", "--k=7", "--scoring=exact"]) == 0
    whole = [row[0] for row in rows_of(capsys.readouterr().out).values()]
    assert len(left) == 5
    assert not set(left) & set(history)
    assert left == [item for item in whole if item not in history][:5]


def test_recommend_histories(trained, capsys, tmp_path):
    folder, _, result = trained
    call = ["recommend", f"--checkpoint={folder / result['checkpoint']}", "--k=3"]
    (tmp_path / "histories.txt").write_text("i1,i7\ni3\n i5 , i11,i17\n")
    assert main([*call, "--histories=histories.txt"]) == 0
    shown = capsys.readouterr().out
    lines = [json.loads(line) for line in shown.splitlines()]
    assert [line["history"] for line in lines] == [["i1", "i7"], ["i3"], ["i5", "i11", "i17"]]
    recommender = Recommender.load(folder / result["checkpoint"])
    for line in lines:
        expected = recommender.recommend(line["history"], k=3)
        assert [row["item"] for row in line["recommendations"]] == [row["item"] for row in expected]
        assert [row["title"] for row in line["recommendations"]] == [row["title"] for row in expected]
        for found, wanted in zip(line["recommendations"], expected, strict=True):
            assert found["score"] == pytest.approx(wanted["score"], abs=1e-4)
    assert main([*call, "--histories=histories.txt", "--output=out/found.jsonl"]) == 0
    assert capsys.readouterr().out == ""
    assert Path("out/found.jsonl").read_text() == shown


def test_settings_of_tiger_alone_make_no_other_run_of_a_baseline(data_path):
    def key(model, **settings):
        return run_key(experiment.prepare(model, "tiny", {"data_path": str(data_path), **settings}))

    assert key("SASRec") == key("SASRec", codebook_size=16, beam_size=30, semantic_ids="mine.tsv")
    assert key("SASRec") != key("SASRec", n_heads=1)  # SASRec reads it, too
    assert key("TIGER") != key("TIGER", codebook_size=16)


def test_settings_that_a_baseline_does_not_read_are_told(data_path, tmp_path, capsys):
    settings = {"data_path": str(data_path), "cache_dir": str(tmp_path), "epochs": 1, "train_neg_sample_args": None}
    own = {"codebook_size": 16, "beam_size": 30}
    assert main(["run", "--model=Pop", "--dataset=tiny", *arguments({**settings, **own})]) == 0
    told = "recbole-tiger: warning: settings without effect on Pop: beam_size, codebook_size"
    assert capsys.readouterr().err.count(told + "\n") == 1
    assert main(["run", "--model=Pop", "--dataset=tiny", *arguments(settings)]) == 0
    assert "settings without effect" not in capsys.readouterr().err
    assert not any(result["still_improving"] for result in read_results("results"))  # Pop does not train
    assert unread("TIGER-text", own) == []
    assert unread("TIGER-text", {**own, "embedding_size": 4, "loss_type": "BPR", "label": "x"}) == [
        "embedding_size",
        "loss_type",
    ]


@pytest.mark.parametrize(
    ("models", "settings", "told"),
    [
        (["TIGER"], {"quantizer": "lsh", "rq_vae_steps": 10, "codebook_size": 16}, "lsh: rq_vae_steps"),
        (["TIGER"], {"quantizer": "atomic", "codebook_depth": 2}, "atomic: codebook_depth"),
        (["TIGER"], {"semantic_ids": "ids.tsv", "codebook_size": 16}, None),
        (["TIGER"], {"rq_vae_steps": 10, "hidden_size": 16}, None),
        (["SASRec", "GRU4Rec"], {"beam_size": 30, "n_heads": 1}, "SASRec or GRU4Rec: beam_size"),
        (["SASRec", "TIGER"], {"beam_size": 30, "n_heads": 1}, None),
        (["SASRec", "TIGER-lsh"], {"rq_vae_steps": 10}, "SASRec or lsh: rq_vae_steps"),
    ],
)
def test_settings_that_nothing_reads_are_told(capsys, models, settings, told):
    warn_unread(models, settings)
    said = capsys.readouterr().err
    assert said == ("" if told is None else f"recbole-tiger: warning: settings without effect on {told}\n")

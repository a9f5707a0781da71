"""Tables and pictures of result files that are made up here, so that every number is known."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure

from recbole_tiger.cli import main
from recbole_tiger.errors import TigerError
from recbole_tiger.report import plots
from recbole_tiger.report.leaderboard import leaderboard, leaderboards, published_rows, settings_of
from recbole_tiger.report.leaderboard import rows_of as leaderboard_rows
from recbole_tiger.report.results import SCHEMA, read_ranks, read_results, write_ranks, write_result
from recbole_tiger.report.statistics import metric_per_user
from tests.test_bad_input import has
from tests.test_command_line import files_under, rows_of

METRICS = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in (5, 10, 20)]
USERS = [f"u{i}" for i in range(400)]


def write_run(
    label,
    seed=1,
    *,
    level=0.2,
    valid=None,
    dataset="amazon-beauty",
    kept=True,
    settings=(),
    users=USERS,
    without=None,
    later_day=None,
    **fields,
):
    """A result file and its ranks; the higher the level, the better they are. Returns the metrics on test.

    Args:
        without: the level of the test without the history; None for a run of before there was one.
        later_day: bool array [users], or None where days are unknown.
    """
    rng = np.random.default_rng([seed, *label.encode()])

    def tested(level):
        ranks = np.where(rng.random(len(users)) < level, rng.integers(1, 21, len(users)), 0).astype(np.int32)
        return ranks, {metric: round(float(metric_per_user(ranks, metric).mean()), 4) for metric in METRICS}

    ranks, test = tested(level)
    more = {} if later_day is None else {"later_day": later_day}
    if without is not None:
        more["ranks_without_history"], fields["test_result_without_history"] = tested(without)
        fields["intervals_without_history"] = {}
    name = f"{dataset}-{label}-{seed}-{len(settings)}"
    if kept:
        write_ranks(users, ranks, f"results/{name}.ranks.npz", **more)
    valid = test["ndcg@10"] if valid is None else valid
    log = [
        {"train_seconds": 2.0, "train_loss": 1.0, "eval_seconds": 1.0, "valid_score": v, "valid_result": {"ndcg@10": v}}
        for v in (valid / 2, valid)
    ]
    result = {
        "schema": SCHEMA,
        "model": label,
        "label": label,
        "dataset": dataset,
        "seed": seed,
        "best_valid_score": valid,
        "valid_score_bigger": True,
        "best_valid_result": {"ndcg@10": valid},
        "test_result": test,
        "epochs": 2,
        "out_of_time": False,
        "still_improving": False,
        "train_seconds": 4.0,
        "eval_users_per_second": 100.0,
        "parameters": 1234,
        "epoch_log": log,
        "settings": {"seed": seed, "learning_rate": 0.001, **dict(settings)},
        "data_hash": "0123",
        "hardware": {"threads": 1},
        "ranks": f"{name}.ranks.npz" if kept else None,
        **fields,
    }
    write_result(result, f"results/{name}.json")
    return test


def table(**options):
    return leaderboard(leaderboard_rows(read_results("results"), "results"), **options)


def cells(text, column):
    head = next(line for line in text.splitlines() if line.startswith("|"))
    place = [cell.strip() for cell in head.strip("|").split("|")].index(column) - 1
    return {name: row[place] for name, row in rows_of(text).items()}


# --- ranks ---


def test_ranks_come_back_sorted_by_user():
    write_ranks(["b", "c", "a"], np.array([2, 0, 1], dtype=np.int32), "x.npz")
    found = read_ranks("x.npz")
    assert found["users"].tolist() == ["a", "b", "c"]
    assert found["ranks"].tolist() == [1, 2, 0]
    assert found["ranks"].dtype == np.int32


def test_damaged_ranks(tmp_path, capsys):
    write_run("SASRec")
    (file,) = (tmp_path / "results").glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert main(["leaderboard"]) == 2
    assert f"{file.name} are absent or damaged" in capsys.readouterr().err


def test_ranks_with_a_bit_turned_over():
    """Wherever it is: they read as they were, or not at all."""
    users, ranks = [f"user {i}" for i in range(300)], np.arange(300, dtype=np.int32)
    write_ranks(users, ranks, "x.npz")
    content = np.fromfile("x.npz", dtype=np.uint8)
    refused = 0
    for place in np.random.default_rng(0).permutation(len(content))[:400]:
        changed = content.copy()
        changed[place] ^= 4
        changed.tofile("x.npz")
        try:
            found = read_ranks("x.npz")
        except TigerError:
            refused += 1
            continue
        assert sorted(found["ranks"].tolist()) == ranks.tolist()
    assert refused > 200


def test_pickled_ranks_are_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    np.savez("x.npz", users=np.array([Trap()], dtype=object), ranks=np.array([1]))
    (tmp_path / "ran").unlink(missing_ok=True)
    with pytest.raises(TigerError, match="damaged"):
        read_ranks("x.npz")
    assert not (tmp_path / "ran").exists()


# --- one table ---


def test_rows_are_ordered_by_validation():
    write_run("GRU4Rec", level=0.5, valid=0.1)
    write_run("SASRec", level=0.1, valid=0.3)
    write_run("TIGER", level=0.3, valid=0.2)
    assert list(rows_of(table())) == ["SASRec", "TIGER", "GRU4Rec"]


def test_smaller_may_be_better():
    write_run("GRU4Rec", valid=0.1, valid_score_bigger=False)
    write_run("SASRec", valid=0.3, valid_score_bigger=False)
    assert list(rows_of(table())) == ["GRU4Rec", "SASRec"]


def test_seeds_make_one_row():
    values = [write_run("TIGER", seed)["recall@10"] for seed in (1, 2, 3)]
    found = cells(table(), "recall@10")
    assert found == {"TIGER": f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"}
    assert cells(table(), "seeds") == {"TIGER": "3"}


def test_rows_of_one_name_tell_how_they_differ():
    write_run("TIGER")
    write_run("TIGER", 2)
    write_run("TIGER", settings=[("learning_rate", 0.01)])
    assert set(rows_of(table())) == {"TIGER (learning_rate=0.001)", "TIGER (learning_rate=0.01)"}


def test_runs_from_before_a_setting_are_in_the_row_of_its_default():
    defaults = [("constrained", True), ("decoding_temperature", None), ("exclude_history", False)]
    for seed, settings in enumerate([(), defaults, [("constrained", False)]]):
        write_run("TIGER", seed, settings=[("semantic_ids", None), *settings])
        write_run("SASRec", seed)
    assert cells(table(), "seeds") == {"TIGER (constrained=True)": "2", "TIGER (constrained=False)": "1", "SASRec": "3"}
    of_sasrec = settings_of(next(result for result in read_results("results") if result["label"] == "SASRec"))
    assert of_sasrec["exclude_history"] is False and "constrained" not in of_sasrec


def test_a_run_that_a_later_version_repeats_counts_once():
    """Its settings are listed in full, so its file has another name."""
    for label in "AB":
        write_run(label, settings=[("semantic_ids", None)])
    write_run("A", level=0.9, settings=[("semantic_ids", None), ("constrained", True)])
    shown = {row.label: row for row in leaderboard_rows(read_results("results"), "results")}
    assert [len(shown[label].results) for label in "AB"] == [1, 1]
    assert shown["A"].results[0]["settings"]["constrained"] is True


def test_runs_of_other_files_of_the_user_are_other_rows():
    """Their settings are the same: the name of a file says nothing of what it holds."""
    write_run("TIGER", inputs=["aaaaaaaaaaaa"])
    write_run("TIGER", 2, inputs=["aaaaaaaaaaaa"])
    write_run("TIGER", 3, inputs=["bbbbbbbbbbbb"])
    assert cells(table(), "seeds") == {"TIGER (inputs=aaaaaaaa)": "2", "TIGER (inputs=bbbbbbbb)": "1"}


def test_rows_that_were_chosen_by_different_metrics():
    """Their scores do not compare; a metric that all validated does."""
    write_run("A", valid=0.2, settings=[("valid_metric", "NDCG@10")])
    valid = {"best_valid_score": 0.9, "best_valid_result": {"recall@20": 0.9, "ndcg@10": 0.1}}
    write_run("B", settings=[("valid_metric", "Recall@20")], **valid)
    assert list(rows_of(table())) == ["A", "B"]


def test_interval():
    write_run("TIGER", 1)
    write_run("TIGER", 2)
    (shown,) = cells(table(), "95% of ndcg@10").values()
    ranks = np.stack([read_ranks(f"results/{result['ranks']}")["ranks"] for result in read_results("results")])
    values = metric_per_user(ranks, "ndcg@10").mean(axis=0)
    found = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0))
    low, high = map(float, shown.split(" to "))
    assert (low, high) == pytest.approx(tuple(found.confidence_interval), abs=0.001)


def test_no_interval_without_ranks():
    write_run("TIGER", kept=False)
    assert "95%" not in table()


def test_ranks_that_are_not_here(tmp_path):
    """As where they were too large to be kept with the result: its own interval stands, and nothing is compared."""
    write_run("A", level=0.9, intervals={"ndcg@10": [0.3, 0.5]})
    write_run("B", level=0.1)
    assert "†" in table(style="markdown")
    whole = cells(table(), "95% of ndcg@10")
    (file,) = (tmp_path / "results").glob("*-A-*.npz")
    file.unlink()
    text = table(style="markdown")
    assert cells(text, "95% of ndcg@10") == {**whole, "A": "0.3000 to 0.5000"}
    assert "†" not in text
    assert "A: not compared user by user, because not all runs have ranks of the same users here" in text


def test_best_second_and_dagger():
    write_run("A", level=0.9)
    write_run("B", level=0.3)
    write_run("C", level=0.1)
    found = cells(table(style="markdown"), "recall@20")
    assert re.fullmatch(r"\*\*0\.\d{4}\*\*†", found["A"])
    assert re.fullmatch(r"<ins>0\.\d{4}</ins>", found["B"])
    assert re.fullmatch(r"0\.\d{4}", found["C"])
    assert "† better than the second: p &lt; 0.05" in table(style="markdown")


def test_no_dagger_for_a_small_difference():
    write_run("A", level=0.3)
    write_run("B", level=0.295)
    assert "†" not in table(style="markdown")


def test_ranks_decide_not_rounded_metrics():
    """Rounded to one decimal the worse of two would be first."""
    for label, level, rounded in (("A", 0.34, 0.5), ("B", 0.44, 0.4)):
        write_run(label, level=level, test_result=dict.fromkeys(METRICS, rounded))
    exact = {row.label: row.per_user("recall@20").mean() for row in leaderboard_rows(read_results("results"), "results")}
    assert exact["A"] < exact["B"]
    assert cells(table(style="markdown"), "recall@20") == {
        "A": f"<ins>{exact['A']:.4f}</ins>",
        "B": f"**{exact['B']:.4f}**†",
    }


@pytest.mark.parametrize(
    "other", [{"kept": False}, {"users": [f"v{i}" for i in range(400)]}], ids=["no ranks", "other users"]
)
def test_no_dagger_where_users_cannot_be_paired(other):
    write_run("A", level=0.9)
    write_run("B", level=0.1, **other)
    assert "†" not in table(style="markdown")


def test_half_precision_is_marked():
    write_run("A", settings=[("enable_amp", True)])
    write_run("B", settings=[("enable_amp", False)])
    assert cells(table(), "train s") == {"A": "4H", "B": "4"}
    assert "H in half precision" in table()
    rows = list(csv.DictReader(io.StringIO(leaderboards(read_results("results"), "results", "csv"))))
    assert {row["model"]: row["enable_amp"] for row in rows if not row["source"]} == {"A": "True", "B": "False"}


def test_marks():
    write_run("A", out_of_time=True, still_improving=True, epochs=7)
    write_run("B", still_improving=True)
    write_run("C")
    write_run("D", 1)
    write_run("D", 2, epochs=4)
    assert cells(table(), "epochs") == {"A": "7T*", "B": "2*", "C": "2", "D": "2-4"}
    assert "T the limit of time" in table()
    assert "* the budget of epochs" in table()


# --- published numbers ---


def test_published_rows_stand_apart():
    write_run("TIGER", level=0.01)
    text = leaderboards(read_results("results"), "results", "markdown")
    found = cells(text, "recall@10")
    assert found["TIGER [1]"] == "0.0648"  # TIGER paper, table 1
    assert re.fullmatch(r"\*\*0\.\d{4}\*\*", found["TIGER"])  # best of what was run, though a published number is higher
    assert "[1] published, not run here: TIGER paper, table 1" in text
    assert cells(text, "recall@20")["TIGER [1]"] == ""


def test_published_rows_are_of_their_protocol():
    for args in ({"mode": "uni100"}, {"mode": {"valid": "full", "test": "uni100"}}, {"split": {"RS": [0.8, 0.1, 0.1]}}):
        write_run("TIGER", settings={"eval_args": args})
        assert list(rows_of(leaderboards(read_results("results"), "results", "markdown"))) == ["TIGER"]
        lines = csv.DictReader(io.StringIO(leaderboards(read_results("results"), "results", "csv")))
        assert [line["model"] for line in lines] == ["TIGER"]


def test_published_numbers_are_plausible():
    for dataset in ("amazon-beauty", "amazon-sports-outdoors", "amazon-toys-games"):
        rows = published_rows(dataset)
        assert {"GRU4Rec", "BERT4Rec", "SASRec", "TIGER"} <= {row.label for row in rows}
        for row in rows:
            found = row.published
            assert set(found) == {"recall@5", "ndcg@5", "recall@10", "ndcg@10"}
            assert found["ndcg@5"] < found["recall@5"] < found["recall@10"]
            assert found["ndcg@5"] < found["ndcg@10"] < found["recall@10"]
            assert row.source


# --- the command ---


def test_tables_are_the_same_byte_for_byte(capsys):
    for label, level in (("SASRec", 0.3), ("TIGER", 0.5)):
        for seed in (1, 2):
            write_run(label, seed, level=level)
            write_run(label, seed, level=level, dataset="tiny")
    before = files_under("results")
    for style in ("markdown", "latex", "csv"):
        outputs = []
        for _ in range(2):
            assert main(["leaderboard", f"--format={style}"]) == 0
            outputs.append(capsys.readouterr().out)
        assert outputs[0] == outputs[1]
        assert main(["leaderboard", f"--format={style}", "--output=out/table"]) == 0
        with open("out/table", encoding="utf-8") as file:
            assert file.read() == outputs[0]
    assert files_under("results") == before


def test_a_table_for_each_dataset():
    write_run("TIGER")
    write_run("TIGER", dataset="tiny")
    write_run("SASRec", dataset="tiny", data_hash="4567")
    text = leaderboards(read_results("results"), "results", "markdown")
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == ["amazon-beauty", "tiny, files 0123", "tiny, files 4567"]


def test_other_protocols_are_other_tables():
    """Among 21 items any model ranks the target higher."""
    full, sampled = ({"eval_args": {"split": {"LS": "valid_and_test"}, "mode": mode}} for mode in ("full", "uni20"))
    write_run("TIGER", level=0.1, settings=full)
    write_run("SASRec", level=0.9, settings=sampled)
    text = leaderboards(read_results("results"), "results", "markdown")
    assert "†" not in text
    titles = re.findall("^## (.*)$", text, flags=re.MULTILINE)
    assert [title.partition(", eval_args ")[0] for title in titles] == ["amazon-beauty"] * 2
    assert ["mode: full" in titles[0], "mode: uni20" in titles[1]] == [True, True]
    rows = list(csv.DictReader(io.StringIO(leaderboards(read_results("results"), "results", "csv"))))
    assert {(row["model"], "uni20" in row["eval_args"]) for row in rows if not row["source"]} == {
        ("TIGER", False),
        ("SASRec", True),
    }
    assert main(["leaderboard", "--plots=out"]) == 0
    assert len(list(Path("out").glob("*-training.png"))) == 2


@pytest.mark.parametrize("key", ["repeatable", "user_inter_num_interval", "val_interval", "ITEM_ID_FIELD"])
def test_other_filters_are_other_tables(key):
    write_run("TIGER", settings={key: "a"})
    write_run("SASRec", settings={key: "b"})
    text = leaderboards(read_results("results"), "results", "markdown")
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == [f"amazon-beauty, {key} {value}" for value in "ab"]


def test_models_that_rank_other_items_are_in_other_tables():
    """Items of the item file that nobody touched are ranked where that file is loaded."""
    write_run("TIGER", dataset="tiny", settings={"load_col": {"inter": ["user_id"], "item": ["item_id"]}})
    write_run("SASRec", dataset="tiny", settings={"load_col": {"inter": ["user_id"]}})
    text = leaderboards(read_results("results"), "results", "markdown")
    titles = re.findall("^## (.*)$", text, flags=re.MULTILINE)
    assert titles == ["tiny, items of the interactions", "tiny, items of the item file"]


@pytest.mark.parametrize(
    ("settings", "published"),
    [
        ({}, True),
        ({"item_inter_num_interval": "[0,inf)"}, True),
        ({"item_inter_num_interval": "[20,inf)"}, False),
        ({"benchmark_filename": ["train", "valid", "test"]}, False),
        ({"repeatable": True}, True),
        ({"repeatable": False}, False),
    ],
)
def test_published_numbers_stand_beside_whole_data_alone(settings, published):
    write_run("TIGER", settings=settings)
    rows = list(csv.DictReader(io.StringIO(leaderboards(read_results("results"), "results", "csv"))))
    assert any(row["source"] for row in rows) == published
    (row,) = [row for row in rows if row["model"] == "TIGER" and not row["source"]]
    assert row["history"] == ("left in" if settings.get("repeatable", True) else "left out")


def test_pictures_whose_titles_differ_in_brackets_alone():
    for label, interval in (("TIGER", "[5,inf)"), ("SASRec", "(5,inf)")):
        write_run(label, settings={"item_inter_num_interval": interval})
    assert main(["leaderboard", "--plots=out"]) == 0
    assert len(list(Path("out").glob("*.png"))) == 4


def test_csv_has_metrics_of_other_lengths():
    write_run("TIGER", dataset="tiny", kept=False, test_result={"recall@3": 0.5, "ndcg@3": 0.25, "mrr@3": 0.2})
    (row,) = csv.DictReader(io.StringIO(leaderboards(read_results("results"), "results", "csv")))
    assert (row["recall@3"], row["ndcg@3"]) == ("0.5", "0.25")


def test_latex_is_escaped():
    write_run("A_b&c", level=0.9)
    write_run("D", level=0.1)
    text = leaderboards(read_results("results"), "results", "latex")
    assert "A\\_b\\&c" in text
    assert re.search(r"\\textbf\{0\.\d{4}\}\$\^\\dagger\$ &", text)
    assert "95\\% of ndcg@10" in text
    assert re.findall(r"\\(?:hline|\w+rule)", text) == ["\\toprule", "\\midrule", "\\bottomrule"]
    assert "p \\textless{} 0.05" in text
    body = text.split("\\end{tabular}")[0].split("\\begin{tabular}")[1]
    assert {line.count(" & ") for line in body.splitlines() if line.endswith("\\\\")} == {12}


def test_every_character_is_escaped_in_latex():
    write_run("A", settings=[("encoder", "C:\\x")])
    write_run("A", 2, settings=[("encoder", "~a^2>1")])
    text = leaderboards(read_results("results"), "results", "latex")
    assert "encoder=C:\\textbackslash{}x" in text
    assert "encoder=\\textasciitilde{}a\\textasciicircum{}2\\textgreater{}1" in text


def test_against(capsys):
    """Against SciPy's bootstrap of the differences of the same users."""
    for label, level in (("A", 0.5), ("B", 0.42)):
        for seed in (1, 2):
            write_run(label, seed, level=level)
    write_run("C", users=[f"v{i}" for i in range(400)])
    write_run("C", dataset="tiny")
    assert main(["leaderboard", "--against=B"]) == 0
    shown = re.search(r"\| +minus B .*?\n\n", capsys.readouterr().out, flags=re.DOTALL).group()
    assert rows_of(shown)["C"] == [""] * 6  # of other users
    ranks = {
        label: np.stack([read_ranks(f"results/amazon-beauty-{label}-{seed}-0.ranks.npz")["ranks"] for seed in (1, 2)])
        for label in "AB"
    }
    for metric, cell in zip(METRICS, rows_of(shown)["A"], strict=True):
        apart = np.subtract(*(metric_per_user(ranks[label], metric).mean(axis=0) for label in "AB"))
        by, p = re.fullmatch(r"([+-]0\.\d{4}) \(p (\d\.\d{4})\)", cell).groups()
        assert float(by) == pytest.approx(apart.mean(), abs=6e-5)
        drawn = scipy.stats.bootstrap((apart,), np.mean, rng=np.random.default_rng(1)).bootstrap_distribution
        expected = np.mean(np.abs(drawn - apart.mean()) >= abs(apart.mean()))
        assert float(p) == pytest.approx(expected, abs=0.02)
    rows = list(csv.DictReader(io.StringIO(leaderboards(read_results("results"), "results", "csv", "B"))))
    (row,) = [row for row in rows if row["model"] == "A"]
    assert float(row["ndcg@20 minus B"]) == pytest.approx(apart.mean(), rel=1e-5)  # six digits
    assert float(row["ndcg@20 minus B p"]) == pytest.approx(float(p), abs=6e-5)
    write_run("B", dataset="alone")
    assert main(["leaderboard", "--against=B", "--format=latex"]) == 0
    assert "minus B" not in capsys.readouterr().out.partition("% alone")[2].partition("% amazon-beauty")[0]
    assert main(["leaderboard", "--against=a"]) == 2
    assert "no table has a row 'a'; did you mean A?" in capsys.readouterr().err
    write_run("B", 3, settings={"learning_rate": 0.5}, dataset="alone")
    write_run("A", 3, settings={"learning_rate": 0.5})
    assert main(["leaderboard", "--against=A"]) == 2
    has(capsys.readouterr().err, "no table has a row 'A'; there are 'A (learning_rate=0.001)' and 'A (learning_rate=0.5)'")


def test_csv_has_every_interval():
    first = write_run("TIGER", level=0.5)
    write_run("SASRec", level=0.1)
    rows = list(csv.DictReader(io.StringIO(leaderboards(read_results("results"), "results", "csv"))))
    (row,) = [row for row in rows if row["model"] == "TIGER" and not row["source"]]
    for metric in METRICS:
        assert round(float(row[metric]), 4) == first[metric]
        assert float(row[f"{metric} low"]) < first[metric] < float(row[f"{metric} high"])
        assert 0 < float(row[f"{metric} p"]) < 0.05
    (other,) = [row for row in rows if row["model"] == "SASRec" and not row["source"]]
    assert other["recall@10 p"] == ""
    assert len([row for row in rows if row["source"]]) == len(published_rows("amazon-beauty"))


def test_each_test_has_a_table_of_its_own(capsys):
    """With other best rows and p-values of their own; runs that were made without one are named."""
    for seed in (1, 2):
        write_run("A", seed, level=0.9, without=0.2)
        write_run("B", seed, level=0.2, without=0.9)
    write_run("old", level=0.5)
    write_run("old", 3, level=0.5)
    assert main(["leaderboard", "--against=A"]) == 0
    shown = capsys.readouterr().out
    first, second = shown.split("## amazon-beauty, history left out")
    assert first.startswith("## amazon-beauty\n")
    assert {"A", "B", "old"} <= set(cells(first, "recall@10"))
    assert set(cells(second, "recall@10")) == {"A", "B"}
    assert "TIGER [1]" in first
    assert "[1]" not in second  # by which protocol others tested is not known
    assert "not tested like this: old (seed 1 3)" in second
    results = [result for result in read_results("results") if result["label"] != "old"]
    for text, name in ((first, "test_result"), (second, "test_result_without_history")):
        for label in "AB":
            values = [result[name]["recall@10"] for result in results if result["label"] == label]
            cell = cells(text, "recall@10")[label].strip("*†").replace("<ins>", "")
            assert cell.startswith(f"{np.mean(values):.4f}")
    assert cells(first, "ndcg@10")["A"].startswith("**")
    assert cells(second, "ndcg@10")["B"].startswith("**")
    assert cells(second, "ndcg@10")["B"].endswith("†")
    lines = list(csv.DictReader(io.StringIO(leaderboards(read_results("results"), "results", "csv"))))
    found = {(line["model"], line["history"]): line["recall@10"] for line in lines if not line["source"]}
    assert set(found) == {("A", "left in"), ("B", "left in"), ("old", "left in"), ("A", "left out"), ("B", "left out")}
    assert float(found["A", "left in"]) > 2 * float(found["A", "left out"])


def test_runs_that_were_validated_in_another_way_are_in_other_tables(capsys):
    write_run("A", without=0.2)
    write_run("A", without=0.3, settings={"exclude_history": True}.items())
    assert main(["leaderboard"]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("##")]
    assert titles == [
        "## amazon-beauty, exclude_history false",
        "## amazon-beauty, exclude_history false, history left out",
        "## amazon-beauty, exclude_history true",
        "## amazon-beauty, exclude_history true, history left out",
    ]


def test_targets_of_the_same_day_and_of_a_later_one(capsys):
    later_day = np.arange(len(USERS)) % 4 == 0
    for label in "AB":
        for seed in (1, 2):
            write_run(label, seed, level={"A": 0.4, "B": 0.3}[label], without=0.5, later_day=later_day)
    write_run("undated", level=0.35)  # from before days were written; its users are the same
    write_run("others", users=[f"v{i}" for i in range(400)])
    assert main(["leaderboard"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("25.0% of the targets are of a later day") == 2
    for text, name in zip(
        shown.split("## amazon-beauty, history left out"), ("ranks", "ranks_without_history"), strict=True
    ):
        table = text[text.rindex("\n", 0, text.index("recall@10, same day")) :]
        rows = rows_of(table)
        assert set(rows) == {"A", "B", *(["undated"] if name == "ranks" else [])}
        for label in "AB":
            both = [read_ranks(f"results/amazon-beauty-{label}-{seed}-0.ranks.npz") for seed in (1, 2)]
            later = np.array([int(user[1:]) % 4 == 0 for user in both[0]["users"]])
            expected = [
                np.mean([metric_per_user(found[name], metric)[later == day].mean() for found in both])
                for metric in ("recall@10", "ndcg@10")
                for day in (False, True)
            ]
            assert [cell.strip("*") for cell in rows[label]] == [f"{value:.4f}" for value in expected]


def test_targets_all_of_a_later_day(capsys):
    write_run("A", later_day=np.ones(len(USERS), dtype=bool))
    assert main(["leaderboard"]) == 0
    assert "later day" not in capsys.readouterr().out


def test_plots(capsys):
    write_run("TIGER", level=0.5)
    write_run("SASRec", kept=False)
    write_run("Pop", dataset="tiny")
    assert main(["leaderboard", "--plots=out"]) == 0
    shown = re.findall("^plot: (.*)$", capsys.readouterr().err, flags=re.MULTILINE)
    assert shown == [f"out/{name}-{kind}.png" for name in ("amazon-beauty", "tiny") for kind in ("training", "parameters")]
    for file in shown:
        with open(file, "rb") as stream:
            assert stream.read(8) == b"\x89PNG\r\n\x1a\n"


def test_curves_of_training_and_points_of_models():
    """Validation against the seconds of training so far; test against parameters."""
    write_run("TIGER", valid=0.2)
    axes = Figure().subplots(), Figure().subplots()
    rows = leaderboard_rows(read_results("results"), "results")
    plots._draw_training(axes[0], rows)
    plots._draw_parameters(axes[1], rows)
    assert axes[0].lines[0].get_xydata().tolist() == [[2.0, 0.1], [4.0, 0.2]]
    assert axes[1].lines[0].get_xydata().tolist() == [[1234, rows[0].mean("ndcg@10")]]


def test_pictures_give_a_model_one_colour():
    write_run("A", valid=0.3, test_result={"recall@10": 0.5}, kept=False)
    write_run("B", valid=0.2)
    axes = Figure().subplots(), Figure().subplots()
    rows = leaderboard_rows(read_results("results"), "results")
    plots._draw_training(axes[0], rows)
    plots._draw_parameters(axes[1], rows)
    assert axes[0].lines[1].get_color() == axes[1].lines[0].get_color()


def test_runs_without_a_common_validation_metric():
    for label, metric, valid in (("B", "GAUC", 0.9), ("A", "MRR@10", 0.1)):
        write_run(label, valid=valid, settings=[("valid_metric", metric)], best_valid_result={metric.lower(): 0.5})
    assert list(rows_of(table())) == ["A", "B"]


def test_labels_are_no_formulas():
    write_run("TIGER $x_{$")
    assert main(["leaderboard", "--plots=out"]) == 0
    assert len(list(Path("out").glob("*.png"))) == 2


def test_nothing_to_show(capsys):
    assert main(["leaderboard", "--results_dir=nowhere"]) == 2
    assert "nowhere holds no result files" in capsys.readouterr().err


def test_other_lengths_of_list():
    write_run("TIGER", kept=False, test_result={"recall@3": 0.25, "ndcg@3": 0.2, "mrr@3": 0.1})
    assert rows_of(table())["TIGER"][:2] == ["0.2500", "0.2000"]
    assert "mrr" not in table()


def test_metrics_other_than_recall_and_ndcg(tmp_path):
    """Those that do not follow from ranks keep RecBole's values, and are not compared user by user."""
    for label in "AB":
        write_run(label, test_result={"map@10": 0.25, "gauc": 0.5, "mrr@10": 0.1})
    assert cells(table(), "map@10") == {"A": "0.2500", "B": "0.2500"}
    assert cells(table(), "gauc") == {"A": "0.5000", "B": "0.5000"}
    ranks = read_ranks("results/amazon-beauty-A-1-0.ranks.npz")["ranks"]
    assert cells(table(), "mrr@10")["A"].strip("†") == f"{metric_per_user(ranks, 'mrr@10').mean():.4f}"
    assert main(["leaderboard", "--format=csv", "--against=A", "--html=page.html", f"--plots={tmp_path}"]) == 0

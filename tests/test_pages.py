"""Pages: what is in their files, and what a browser shows of them, opened from disk with the network off."""

import csv
import io
import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recbole_tiger import Recommender
from recbole_tiger.catalogue.semantic_ids import SemanticIDs, add_collision_level
from recbole_tiger.cli import main
from recbole_tiger.report.html import recommendations, semantic_ids
from recbole_tiger.report.html.semantic_ids import categories_of, write_semantic_ids_page
from recbole_tiger.runs import experiment
from recbole_tiger.runs.occurrences import target_occurrences
from tests.conftest import data_of, read_sequences, small_settings, write_dataset
from tests.test_leaderboard import USERS, write_run

EVIL = '<script>document.title = "ran"</script><b>Bold</b> & <img src=x onerror="document.title=\'ran\'">'
MEGABYTE = 2**20


def given(options):
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The dataset "tiny" with a title that would run, if it were not text; a trained TIGER of it."""
    folder = tmp_path_factory.mktemp("pages")
    path = write_dataset(folder)
    file = path / "tiny.item"
    file.write_text(file.read_text().replace("The shampoo number 7\t", f"{EVIL}\t"))
    settings = small_settings(folder, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["test"])
        result = experiment.run(experiment.prepare("TIGER", "tiny", settings), folder / "results")
    return SimpleNamespace(folder=folder, path=path, settings=settings, checkpoint=folder / result["checkpoint"])


def catalogue_of(n_items):
    """A made-up catalogue of the size of the Amazon datasets, with three codes of 256."""
    rng = np.random.default_rng(0)
    codes = np.column_stack([rng.integers(256, size=n_items) for _ in range(3)])
    kinds = ["Makeup", "Skin Care", "Hair Care", "Fragrance"]
    columns = {"categories": [f"Beauty > {kinds[code % 4]} > Others" for code in codes[:, 0]]}
    titles = [f"The {columns['categories'][i].split(' > ')[1]} of a rather long title, number {i}" for i in range(n_items)]
    titles[3] = EVIL
    items = [f"B{i:09d}" for i in range(n_items)]
    return SimpleNamespace(semantic_ids=SemanticIDs(items, add_collision_level(codes)), titles=titles, columns=columns)


# --- the files ---


@pytest.mark.parametrize(
    "command",
    [
        ["leaderboard"],
        ["recommend", "--checkpoint=absent.pth", "--history=i1"],
        ["run", "--model=Pop", "--dataset=absent"],
        ["compare", "--models=Pop", "--dataset=absent"],
        ["tokenize", "--dataset=absent"],
    ],
    ids=lambda command: command[0],
)
def test_a_page_that_cannot_be_written_is_refused_first(command, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main([*command, "--html=file/page.html"]) == 2
    assert "cannot make the folder file" in capsys.readouterr().err
    assert main([*command, f"--html={tmp_path}"]) == 2
    assert f"{tmp_path} is a folder: name a file in it" in capsys.readouterr().err


def test_the_page_of_a_leaderboard_has_what_its_tables_have(capsys):
    for seed in (1, 2):
        write_run("TIGER", seed, level=0.4)
    test = write_run("SASRec", level=0.3)
    assert main(["leaderboard", "--format=csv", "--against=SASRec", "--html=page.html"]) == 0
    (table,) = data_of("page.html")["tables"]
    rows = {row["label"]: row for row in table["rows"] if "seeds" in row}
    assert list(rows) == ["TIGER", "SASRec"]
    assert rows["TIGER"]["seeds"] == 2
    assert rows["SASRec"]["metrics"]["recall@10"][0] == pytest.approx(test["recall@10"], abs=5e-5)
    lines = {line["model"]: line for line in csv.DictReader(io.StringIO(capsys.readouterr().out)) if line["seeds"]}
    for label, row in rows.items():
        low, high = (float(lines[label][f"ndcg@10 {end}"]) for end in ("low", "high"))
        assert row["metrics"]["ndcg@10"][2:] == pytest.approx([low, high])
    (pair,) = table["pairs"].values()
    expected = [float(lines["TIGER"][f"ndcg@10 minus SASRec{end}"]) for end in ("", " p")]
    assert pair["ndcg@10"] == pytest.approx(expected)
    assert rows["SASRec"]["settings"]["learning_rate"] == "0.001"
    assert rows["SASRec"]["training"] == [[[2.0, pytest.approx(test["ndcg@10"] / 2)], [4.0, pytest.approx(test["ndcg@10"])]]]
    assert table["occurrences"] is None


def test_a_page_of_other_lengths_of_list_has_p_values():
    for label in "AB":
        write_run(label, test_result={"recall@5": 0.1, "ndcg@5": 0.1})
    assert main(["leaderboard", "--html=page.html"]) == 0
    (table,) = data_of("page.html")["tables"]
    assert [set(pair) for pair in table["pairs"].values()] == [{"ndcg@5"}]


def occurrences_of(sequences):
    """How often each user's last item is among the items of all users but their last two."""
    counts = Counter(item for items in sequences.values() for item in items[:-2])
    return {user: counts[items[-1]] for user, items in sequences.items()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data_path=."], "--data_path is for --html: give --html=FILE too, or leave --data_path out"),
        (["--data_path=absent", "--html=page.html"], "data_path absent is no folder: give the folder of datasets"),
    ],
)
def test_folders_of_datasets_that_cannot_be_read(options, said, capsys):
    write_run("A")
    assert main(["leaderboard", *options]) == 2
    assert said in capsys.readouterr().err
    assert not Path("page.html").exists()


def test_recall_by_occurrences_counts_training_interactions(tiny, tmp_path):
    main(["run", "--model=Pop", "--dataset=tiny", "--html=page.html", f"--data_path={tiny.folder}", "--show_progress=False"])
    sequences = read_sequences(tiny.path)
    expected = occurrences_of(sequences)
    (file,) = Path("results").glob("*.json")
    result = json.loads(file.read_text())
    users, found = target_occurrences(result, tiny.folder)
    assert dict(zip(users.tolist(), found.tolist(), strict=True)) == expected
    tables = data_of("page.html")["tables"]
    ends = [-1, 2, 5, 10, 20, 50, 10**9]
    inside = [sum(low < count <= high for count in expected.values()) for low, high in pairwise(ends)]
    for table, test in zip(tables, ("test_result", "test_result_without_history"), strict=True):
        assert table["occurrences"]["users"] == inside
        (curve,) = table["occurrences"]["rows"].values()
        mean = sum(share * (value or 0) for share, value in zip(inside, curve, strict=True)) / len(sequences)
        assert mean == pytest.approx(result[test]["recall@10"], abs=1e-4)
    assert main(["leaderboard", "--html=other.html", f"--data_path={tiny.folder}"]) == 0
    assert [table["occurrences"] for table in data_of("other.html")["tables"]] == [table["occurrences"] for table in tables]
    assert target_occurrences({**result, "data_hash": "another"}, tiny.folder) is None
    drawn = {**result["settings"], "eval_args": {**result["settings"]["eval_args"], "order": "RO"}}
    assert target_occurrences({**result, "settings": drawn}, tiny.folder) is None
    assert target_occurrences(result, tmp_path) is None
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/tiny.inter").write_text("other:token\nx\n")
    assert target_occurrences(result, tmp_path) is None


def test_occurrences_in_files_with_other_columns(tiny):
    folder = Path("data/tiny")
    folder.mkdir(parents=True)
    for kind in ("inter", "item"):
        text = (tiny.path / f"tiny.{kind}").read_text()
        text = text.replace("item_id:", "sku:").replace("title:", "name:").replace("\t", ",")
        (folder / f"tiny.{kind}").write_text(text)
    other = ["--field_separator=,", "--ITEM_ID_FIELD=sku", "--text_fields=[name]"]
    call = ["run", "--model=Pop", "--dataset=tiny", "--data_path=data", "--show_progress=False", *other]
    assert main([*call, "--html=page.html"]) == 0
    (file,) = Path("results").glob("*.json")
    users, found = target_occurrences(json.loads(file.read_text()), "data")
    assert dict(zip(users.tolist(), found.tolist(), strict=True)) == occurrences_of(read_sequences(tiny.path))


def test_levels_of_recommendations_sum_to_their_scores(tiny):
    Path("histories").write_text("i1,i7,i13\n" + ",".join(f"i{i}" for i in range(30)) + "\n")
    assert main(["recommend", f"--checkpoint={tiny.checkpoint}", "--histories=histories", "--html=page.html"]) == 0
    data = data_of("page.html")
    recommender = Recommender.load(tiny.checkpoint, "cpu")
    for shown in data["histories"]:
        assert [sum(parts) for parts in shown["parts"]] == pytest.approx(shown["scores"], abs=1e-3)
        found = recommender.recommend(shown["history"])
        assert [row["item"] for row in found] == shown["items"]
    assert [shown["unread"] for shown in data["histories"]] == [0, 10]
    ids = dict(zip(recommender.semantic_ids.items, recommender.semantic_ids.codes.tolist(), strict=True))
    assert {item: codes for item, (_, codes) in data["catalogue"].items()}.items() <= ids.items()
    assert data["catalogue"]["i7"][0] == EVIL


def test_too_many_histories_for_a_page(tiny, monkeypatch, capsys):
    monkeypatch.setattr(recommendations, "MOST_ROWS", 20)
    Path("histories").write_text("i1,i7\ni2\n")
    command = ["recommend", f"--checkpoint={tiny.checkpoint}", "--histories=histories", "--html=page.html"]
    assert main(command) == 2
    assert "2 histories and their lists of 10 would have 23 items, but the limit is 20" in capsys.readouterr().err
    assert not Path("page.html").exists()


def test_categories_are_of_the_first_step_in_which_paths_differ():
    names, of_item = categories_of(["Beauty > Hair > A", "Beauty > Skin", "Beauty > Hair > B", "", "Beauty"])
    assert [names[place] for place in of_item] == ["Hair", "Skin", "Hair", "other", "other"]
    assert categories_of(["Toys > A", "Toys > A"]) == (["other"], [0, 0])
    names, of_item = categories_of([f"kind {i % 12}" for i in range(120)] + ["kind 11"])
    assert len(names) == 10
    assert names[0] == "kind 11"
    assert of_item.count(9) == 30


def test_a_large_catalogue_is_drawn_from_and_counted_whole(monkeypatch):
    monkeypatch.setattr(semantic_ids, "MOST_ITEMS", 50)
    catalogue = catalogue_of(400)
    write_semantic_ids_page("page.html", "IDs", catalogue)
    data = data_of("page.html")
    assert len(data["items"]) == len(data["codes"]) == len(data["category"]) == 50
    assert data["statistics"]["items"] == 400
    assert sum(data["usage"][0]) == sum(size * count for size, count in data["groups"]) == 400
    codes = dict(zip(catalogue.semantic_ids.items, catalogue.semantic_ids.codes.tolist(), strict=True))
    assert all(codes[item] == own for item, own in zip(data["items"], data["codes"], strict=True))


# --- in a browser ---


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, without a network."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as opened:
        opened.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        opened.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        yield opened


def opened(browser, file):
    """Open a page, with an empty log."""
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(Path(file).resolve().as_uri())


def column(browser, name, place="table"):
    """Texts of a column of the first table within ``place``."""
    table = browser.find_element("css selector", place)
    heads = [cell.text.rstrip(" ↕↑↓") for cell in table.find_elements("css selector", "th")]
    return [cell.text for cell in table.find_elements("css selector", f"tbody td:nth-child({heads.index(name) + 1})")]


def check_quiet(browser):
    """No error, no warning, no request, and nothing of the data was run."""
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.title != "ran"
    for width in (1280, 400):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_leaderboard_in_a_browser(browser):
    write_run("TIGER", 1, level=0.4)
    write_run("TIGER", 2, level=0.4)
    write_run(EVIL[:8] + "b>SASRec", level=0.3, users=USERS)
    write_run("Pop", level=0.1)
    assert main(["leaderboard", "--html=page.html", "--output=tables.md"]) == 0
    opened(browser, "page.html")
    seen = []
    for _ in range(2):
        browser.find_element("xpath", "//th[button='recall@10']/button").click()
        values = [float(text.split()[0]) for text in column(browser, "recall@10")]
        seen.append(browser.find_element("xpath", "//th[button='recall@10']").get_attribute("aria-sort"))
        assert values == sorted(values, reverse=seen[-1] == "descending")
    assert sorted(seen) == ["ascending", "descending"]
    assert len(browser.find_elements("css selector", ".js-plotly-plot .barlayer .bars")) == 2  # run here and published
    browser.find_element("xpath", "//button[.='TIGER']").click()
    details = browser.find_element("id", "details")
    assert "learning_rate" in details.text
    browser.find_element("xpath", "//button[.='Pop']").click()
    assert "TIGER minus Pop" in details.text
    differences = column(browser, "difference", "#details table")
    (table,) = data_of("page.html")["tables"]
    labels = [row["label"] for row in table["rows"]]
    pair = table["pairs"][f"{labels.index('TIGER', 6)},{labels.index('Pop')}"]
    assert f"{pair['ndcg@10'][0]:+.4f}" in differences
    check_quiet(browser)


def test_semantic_ids_in_a_browser(browser):
    catalogue = catalogue_of(12_000)
    write_semantic_ids_page("page.html", "IDs", catalogue)
    assert Path("page.html").stat().st_size < 10 * MEGABYTE
    opened(browser, "page.html")
    search = browser.find_element("id", "search")
    search.send_keys("number 11999")
    assert column(browser, "item", "#found table") == ["B000011999"]
    search.clear()
    search.send_keys("<script>")
    assert column(browser, "title", "#found table") == [EVIL]
    codes = catalogue.semantic_ids.codes
    search.clear()
    first, second = codes[5, :2].tolist()
    search.send_keys(f"{first}, {second}")
    expected = {catalogue.semantic_ids.items[i] for i in np.flatnonzero((codes[:, :2] == [first, second]).all(axis=1))}
    assert expected <= set(column(browser, "item", "#found table"))
    search.clear()
    search.send_keys(" ")
    largest = np.bincount(codes[:, 0]).argmax()
    assert len(browser.find_elements("css selector", "#treemap .slice")) == 257
    box = browser.find_element("xpath", f"//*[@id='treemap']//*[contains(@class, 'slice')][starts-with(., '{largest} ')]")
    box.click()
    for more in browser.find_elements("css selector", "#items .more button"):
        more.click()
    expected = {catalogue.semantic_ids.items[i] for i in np.flatnonzero(codes[:, 0] == largest)}
    assert set(column(browser, "item", "#items table")) == expected
    check_quiet(browser)


def test_tokenize_and_recommend_in_a_browser(browser, tiny):
    settings = given({**tiny.settings, "text_fields": "[title, brand]"})
    assert main(["tokenize", "--dataset=tiny", "--html=ids.html", *settings]) == 0
    opened(browser, "ids.html")
    assert "60 items" in browser.find_element("css selector", "main > p").text
    browser.find_element("css selector", "#items button.code").click()
    data = data_of("ids.html")
    expected = {item for item, codes in zip(data["items"], data["codes"], strict=True) if codes[0] == data["codes"][0][0]}
    assert set(column(browser, "item", "#items table")) == expected
    check_quiet(browser)
    command = ["recommend", f"--checkpoint={tiny.checkpoint}", "--history=i1,i7,i13", "--k=60", "--html=page.html"]
    assert main(command) == 0
    opened(browser, "page.html")
    assert column(browser, "title", "#history table") == [
        "The shampoo number 1\ni1",
        f"{EVIL}\ni7",
        "The shampoo number 13\ni13",
    ]
    browser.find_element("css selector", "tr.clickable").click()
    history, chosen = (browser.find_elements("css selector", f"{place} .shared") for place in ("#history", "#list .chosen"))
    assert [part.text for part in chosen] == [part.text for part in history] != []
    check_quiet(browser)


def test_the_histories_of_a_page_in_a_browser(browser, tiny):
    Path("histories").write_text("i1\ni2\ni3\n")
    call = ["recommend", f"--checkpoint={tiny.checkpoint}", "--histories=histories", "--output=lists", "--html=page.html"]
    assert main(call) == 0
    opened(browser, "page.html")
    number = browser.find_element("css selector", "#number")
    for typed, shown in (("2", "i2"), ("2.6", "i3"), ("1.4", "i1"), ("9", "i3"), ("", "i1")):
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))"
        browser.execute_script(script, number, typed)
        (title,) = column(browser, "title", "#history table")
        assert title.endswith(shown), typed
    check_quiet(browser)

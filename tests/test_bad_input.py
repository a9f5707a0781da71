"""Bad input: a clear sentence with the fact, the place and the remedy, before any long work, and nothing half-written."""

import contextlib
import gzip
import json
import multiprocessing
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from logging import FileHandler
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset
from recbole.model.sequential_recommender import SASRec
from recbole.utils import get_model

from recbole_tiger import Recommender, SemanticIDs, files, run_recbole
from recbole_tiger.catalogue.encoder import encode, load_encoder
from recbole_tiger.catalogue.item_text import read_item_text
from recbole_tiger.catalogue.quantizers.rq_kmeans import RQKMeans
from recbole_tiger.cli import main
from recbole_tiger.errors import TigerError
from recbole_tiger.files import locked
from recbole_tiger.model.tiger import TIGER
from recbole_tiger.report.results import FIELDS, read_results
from recbole_tiger.runs import experiment
from recbole_tiger.runs.occurrences import target_occurrences
from recbole_tiger.settings.arguments import parse_arguments
from recbole_tiger.settings.config import make_config
from recbole_tiger.settings.identity import run_key
from recbole_tiger.training.checkpoint import load_checkpoint, save_checkpoint
from recbole_tiger.training.dataset import training_windows
from tests.conftest import N_ITEMS, read_sequences, small_settings, write_dataset
from tests.test_command_line import arguments, files_under, rows_of
from tests.test_recbole import built

from recbole.quick_start import load_data_and_model  # isort: skip - after the plugin's import, as users have it

QUIET = {"state": "ERROR"}  # RecBole logs to standard error; errors alone are to be seen there
NO_ENCODER = {"item_embeddings": None, "text_encoder": "no/such/encoder"}


def sentence(capsys):
    """The one line on standard error that says what is wrong."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("recbole-tiger: error: ")
    return lines[0].removeprefix("recbole-tiger: error: ")


def refused(capsys, command, settings=None):
    """Assert that a command is refused with status 2 and leaves no file; returns the message."""
    before = files_under(".")
    capsys.readouterr()
    assert main([*command, *arguments({**(settings or {}), **(QUIET if settings else {})})]) == 2
    assert files_under(".") == before
    return sentence(capsys)


def run(capsys, settings, *more, dataset="tiny", model="TIGER"):
    return refused(capsys, ["run", f"--model={model}", f"--dataset={dataset}", *more], settings)


def of_model(settings, model):
    """Those of TIGER's settings that a model has."""
    return settings if model == "TIGER" else {key: settings[key] for key in ("data_path", "epochs")}


def has(message, *parts):
    for part in parts:
        assert str(part) in message, message
    return message


@pytest.fixture
def own(tmp_path, settings):
    """A copy of the dataset to spoil, and settings for it.

    They name an encoder that does not exist: a message about anything else came before the encoding.
    """
    folder = write_dataset(tmp_path / "data")
    return folder, {**settings, "data_path": str(tmp_path / "data"), **NO_ENCODER}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_path):
    """A folder with checkpoints of TIGER and SASRec, and TIGER's settings."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {**small_settings(folder, data_path), "epochs": 1}
    shared = {key: settings[key] for key in ("data_path", "checkpoint_dir", "epochs", "show_progress")}
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["run", "--model=TIGER", "--dataset=tiny", *arguments(settings)]) == 0
        assert main(["run", "--model=SASRec", "--dataset=tiny", "--n_layers=1", *arguments(shared)]) == 0
    finally:
        os.chdir(before)
    files = {result["model"]: Path(result["checkpoint"]) for result in read_results(folder / "results")}
    return files, settings


# --- dataset ---


def test_unknown_dataset(capsys, own):
    _, settings = own
    has(run(capsys, settings, dataset="tinny"), "tinny", settings["data_path"], "--data_path=")
    assert not Path(settings["data_path"], "tinny").exists()


def test_no_interaction_file(capsys, own):
    folder, settings = own
    (folder / "tiny.inter").unlink()
    has(run(capsys, settings), "no interaction file", folder / "tiny.inter")


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_no_item_file(capsys, own, model):
    folder, settings = own
    (folder / "tiny.item").unlink()
    if model != "TIGER":
        settings = {"data_path": settings["data_path"], "epochs": 1}
    has(run(capsys, settings, model=model), "no item file", folder / "tiny.item", "item_id:token title:token")


def test_columns_of_items_without_an_item_file(capsys, own):
    folder, settings = own
    (folder / "tiny.item").unlink()
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]}
    told = run(capsys, {**of_model(settings, "SASRec"), "load_col": columns}, model="SASRec")
    has(told, "load_col names columns of items", folder / "tiny.item", "does not exist")


def test_no_text_field(capsys, own):
    folder, settings = own
    message = run(capsys, {**settings, "text_fields": ["name", "blurb"]})
    has(message, "none of text_fields name, blurb", folder / "tiny.item", "title, brand, price", "--text_fields=")


@pytest.mark.parametrize("stock", [False, True], ids=["command", "run_recbole"])
def test_interactions_with_unknown_items(capsys, own, stock):
    folder, settings = own
    items = (folder / "tiny.item").read_text().splitlines()
    (folder / "tiny.item").write_text("\n".join([*items[:6], *items[7:31], *items[32:]]) + "\n")  # without i5 and i30
    used = [line.split("\t")[1] for line in (folder / "tiny.inter").read_text().splitlines()]
    count = used.count("i5") + used.count("i30")
    if stock:
        with pytest.raises(TigerError) as error:
            run_recbole(model="TIGER", dataset="tiny", config_dict=settings)
        message = str(error.value)
    else:
        message = run(capsys, settings)
    has(
        message,
        f"{count} interactions",
        folder / "tiny.inter",
        "2 items",
        folder / "tiny.item",
        "i5",
        "i30",
        "add their rows",
    )


@pytest.mark.parametrize(("token", "name"), [("i5", "NA"), ("u3", "null")])
def test_tokens_that_recbole_reads_as_missing(capsys, own, token, name):
    """It would drop their rows."""
    folder, settings = own
    for kind in ("item", "inter"):
        file = folder / f"tiny.{kind}"
        file.write_text(re.sub(rf"\b{token}\b", name, file.read_text()))
    for model in ("TIGER", "SASRec"):
        has(run(capsys, of_model(settings, model), model=model), folder, name, "missing", "differently")


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_histories_too_short_for_a_validation_set(capsys, own, model):
    """Before the training, which could not choose an epoch."""
    folder, settings = own
    counts, kept = {}, []
    for line in (folder / "tiny.inter").read_text().splitlines():
        user = line.split("\t")[0]
        counts[user] = counts.get(user, 0) + 1
        kept += [line] if counts[user] <= 3 else []
    (folder / "tiny.inter").write_text("\n".join(kept) + "\n")
    settings["item_embeddings"] = str(folder / "embeddings.npz")
    call = ["run", f"--model={model}", "--dataset=tiny", *arguments({**of_model(settings, model), **QUIET})]
    assert main(call) == 2
    has(sentence(capsys), "tiny", "no interaction is left for validation", "at least four")
    assert not list(Path().glob("**/*.pth"))


def test_a_changed_file_is_checked_again(own):
    folder, settings = own
    experiment.prepare("TIGER", "tiny", settings)
    lines = (folder / "tiny.item").read_text().splitlines()
    (folder / "tiny.item").write_text("\n".join([*lines[:6], *lines[7:]]) + "\n")  # without i5
    with pytest.raises(TigerError, match=r"with 1 items .* lacks: i5"):
        experiment.prepare("TIGER", "tiny", settings)


def test_items_without_text(capsys, own):
    folder, settings = own
    lines = (folder / "tiny.item").read_text().splitlines()
    for number in (3, 7, 11, 13):
        lines[number + 1] = f"i{number}\t \t\t"
    (folder / "tiny.item").write_text("\n".join(lines) + "\n")
    message = has(
        run(capsys, settings), "4 items have no text", folder / "tiny.item", "title, brand, price", "give them text"
    )
    assert len({f"i{number}" for number in (3, 7, 11, 13)} & set(re.findall(r"i\d+", message))) == 3  # a few are named


def test_header_without_types(capsys, own):
    folder, settings = own
    text = (folder / "tiny.item").read_text()
    (folder / "tiny.item").write_text(text.replace("title:token", "title", 1))
    has(run(capsys, settings), folder / "tiny.item", "'title'", "name:type")


@pytest.mark.parametrize("kind", ["item", "inter"])
def test_byte_order_mark(capsys, own, kind):
    folder, settings = own
    file = folder / f"tiny.{kind}"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    has(run(capsys, settings), file, "byte-order mark", "--encoding=utf-8-sig")
    config = experiment.prepare("TIGER", "tiny", {**settings, "encoding": "utf-8-sig"})
    assert config["load_col"]["item"] == ["item_id", "title", "brand", "price"]


def test_ragged_item_file(capsys, own):
    folder, settings = own
    with open(folder / "tiny.item", "a") as stream:
        stream.write("i60\tA title\twith\ttoo\tmany\ttabs\n")
    has(run(capsys, settings), folder / "tiny.item", "line 62")


@pytest.mark.parametrize("title", ['"Deluxe soap', '"Deluxe" soap', '"Deluxe ""soap'])
def test_a_quote_that_opens_a_title_and_does_not_close_it(capsys, own, title):
    """RecBole would read on to the next quote, and lose the items between."""
    folder, settings = own
    lines = (folder / "tiny.item").read_text().splitlines()
    for line in (4, 30):
        item, _, brand, price = lines[line].split("\t")
        lines[line] = "\t".join([item, title, brand, price])
    (folder / "tiny.item").write_text("\n".join(lines) + "\n")
    for model in ("TIGER", "SASRec"):
        has(run(capsys, of_model(settings, model), model=model), "tiny.item, line 5", "double quote")


def test_quotes_that_enclose_a_title(own):
    folder, settings = own
    text = (folder / "tiny.item").read_text()
    (folder / "tiny.item").write_text(text.replace("The soap number 2\t", '"The ""soap"" number 2"\t'))
    _, (train_data, *_), *_ = built({**settings, "item_embeddings": str(folder / "embeddings.npz")})
    assert train_data.dataset.item_num == N_ITEMS + 1
    catalogue = train_data.dataset.catalogue
    assert catalogue.titles[catalogue.items.index("i2")] == 'The "soap" number 2'


def test_quotes_that_enclose_an_item_token(own):
    """As csv writers put them around every value of a column; RecBole reads the token within."""
    folder, settings = own
    lines = (folder / "tiny.item").read_text().splitlines()
    lines[1:] = ['"{}"\t{}'.format(*line.split("\t", 1)) for line in lines[1:]]
    (folder / "tiny.item").write_text("\n".join(lines) + "\n")
    _, (train_data, *_), *_ = built({**settings, "item_embeddings": str(folder / "embeddings.npz")})
    assert "i2" in train_data.dataset.catalogue.items
    assert train_data.dataset.item_num == N_ITEMS + 1


@pytest.mark.parametrize("kind", ["item", "inter"])
def test_file_of_another_encoding(capsys, own, kind):
    folder, settings = own
    with open(folder / f"tiny.{kind}", "ab") as stream:
        stream.write("i60\tCrème\tbrûlée\t1\n".encode("latin-1"))
    has(run(capsys, settings), folder / f"tiny.{kind}", "utf-8", "--encoding=")


def test_price_that_is_no_number(capsys, own):
    folder, settings = own
    text = (folder / "tiny.item").read_text()
    (folder / "tiny.item").write_text(text + "i60\tA soap\tAcme\tcheap\n")
    has(run(capsys, settings), folder, "price:float", "correct the value or the type in the header")


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda text: text.replace("timestamp:float", "timestamp:token"), ["timestamp is of type token", "timestamp:float"]),
        (
            lambda text: re.sub(r"\t[\d.]+\n", "\t\n", text, count=3),
            ["3 interactions have no number in timestamp", "'' in row 1"],
        ),
        (
            lambda text: re.sub(r"\t[\d.]+\n", "\t2014-05-01\n", text),
            ["have no number in timestamp", "'2014-05-01' in row 1"],
        ),
        (
            lambda text: text.replace("item_id:token", "item_id:float"),
            ["tiny.inter: item_id is of type float", "item_id:token"],
        ),
        (lambda text: text.replace("user_id:token", "user_id:float"), ["user_id is of type float", "user_id:token"]),
    ],
    ids=["times as tokens", "absent times", "dates", "items as numbers", "users as numbers"],
)
def test_interactions_whose_order_or_items_recbole_would_lose(capsys, own, model, change, parts):
    folder, settings = own
    file = folder / "tiny.inter"
    file.write_text(change(file.read_text()))
    has(run(capsys, of_model(settings, model), model=model), *parts)


def spoil(file, old, new, count=1):
    """Replace bytes of a file, which has them."""
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, count))


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
@pytest.mark.parametrize(
    ("kind", "old", "new", "parts"),
    [
        ("item", b"The soap number 8", b"The \rsoap", ["tiny.item, line 10", "carriage return", "replace it by a space"]),
        ("item", b"The soap number 8", b"The \0soap", ["tiny.item, line 10", "NUL", "replace it by a space"]),
        ("item", b"item_id", b"item_id\r", ["tiny.item, line 1", "carriage return"]),
        ("inter", b"\n", b"\r", ["tiny.inter, line 1", "carriage return"]),
        ("inter", b"u3\t", b"\t", ["tiny.inter: 1 rows have no user_id", "first row", "leave them out"]),
        ("inter", b"\ti9\t", b"\t\t", ["tiny.inter: 1 rows have no item_id", "leave them out"]),
        ("item", b"i9\t", b"\t", ["tiny.item: 1 rows have no item_id", "leave them out"]),
    ],
)
def test_rows_that_readers_would_end_or_drop(capsys, own, model, kind, old, new, parts):
    """A lone carriage return in a title made an item of the rest of the row."""
    folder, settings = own
    spoil(folder / f"tiny.{kind}", old, new, -1 if old == b"\n" else 1)
    has(run(capsys, of_model(settings, model), model=model), *parts)


def test_a_file_that_pandas_reads_otherwise(capsys, own):
    """To pandas a separator of two characters is a regular expression."""
    folder, settings = own
    for separator, part in (("..", "cannot read it with the separator '..'"), ("~.", "another item_id in row 9")):
        write_dataset(folder.parent)
        for kind in ("item", "inter"):
            file = folder / f"tiny.{kind}"
            file.write_text(re.sub(r"\bi8\b", "~~8", file.read_text()).replace("\t", separator))
        has(run(capsys, {**settings, "field_separator": separator}), "tiny.item", part, "--field_separator")


@pytest.mark.parametrize("kind", ["item", "inter"])
@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_windows_line_ends(own, kind, model):
    folder, settings = own
    spoil(folder / f"tiny.{kind}", b"\n", b"\r\n", -1)
    config = experiment.prepare(model, "tiny", {**of_model(settings, model), "text_fields": ["title"]})
    assert read_item_text(config).loc["i8", "text"] == "The soap number 8"


@pytest.mark.parametrize("kind", ["item", "inter"])
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda data: gzip.compress(data), ["is a gzip file: unpack it"]),
        (lambda data: b"", ["has no header"]),
        (lambda data: b"\n" + data, ["has no header: its first line"]),
        (lambda data: data.replace(b"\t", b";"), [";", "name:type", "--field_separator="]),
        (lambda data: data.replace(b"\t", b" "), ["name:type", "--field_separator="]),
        (lambda data: data.replace(b":token", b":tokens", 1), ["_id:tokens'", "token, token_seq, float, float_seq"]),
        (lambda data: data.replace(b"\n", b"\titem_id:token\n", 1), ["the header has the column item_id twice"]),
        (lambda data: b'"' + data.replace(b"\t", b'"\t', 1), ["name:type", "without quotes"]),
    ],
    ids=["gzip", "empty", "first line empty", "semicolons", "blanks", "type", "twice", "quotes"],
)
def test_a_header_that_is_none(capsys, own, kind, change, parts):
    folder, settings = own
    file = folder / f"tiny.{kind}"
    file.write_bytes(change(file.read_bytes()))
    has(run(capsys, settings), file, *parts)


def test_a_header_alone(capsys, own):
    folder, settings = own
    file = folder / "tiny.inter"
    file.write_text(file.read_text().partition("\n")[0] + "\n")
    for model in ("TIGER", "SASRec"):
        has(run(capsys, of_model(settings, model), model=model), file, "a header and no interaction")


def test_interactions_without_times(capsys, own):
    folder, settings = own
    file = folder / "tiny.inter"
    file.write_text(re.sub(r"\t[^\t]*$", "", file.read_text(), flags=re.MULTILINE))
    has(run(capsys, settings), file, "no column timestamp", "running numbers as timestamp:float")


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_every_user_with_one_interaction(capsys, own, model):
    folder, settings = own
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *(f"u{i}\ti{i}\t{i}" for i in range(60))]
    (folder / "tiny.inter").write_text("\n".join(lines) + "\n")
    settings["item_embeddings"] = str(folder / "embeddings.npz")
    call = ["run", f"--model={model}", "--dataset=tiny", *arguments({**of_model(settings, model), **QUIET})]
    assert main(call) == 2
    has(sentence(capsys), "no interaction is left for training", "at least four")


# --- text ---


def with_rows(folder, kinds, rows):
    """Put rows of these columns, beside item_id, in place of the item file's."""
    lines = ["\t".join(["item_id:token", *kinds]), *("\t".join([f"i{i}", *row]) for i, row in enumerate(rows))]
    (folder / "tiny.item").write_text("\n".join(lines) + "\n")


def test_values_that_are_written_for_absent_ones(own):
    """A number that is none, and an empty list."""
    folder, settings = own
    prices = ["nan", "NaN", "", "inf", "<NA>", "12.50"]
    with_rows(
        folder,
        ["title:token", "price:float", "tags:token_seq"],
        [[f"Soap {i}", prices[i % 6], "[]" if i % 2 else "red blue"] for i in range(N_ITEMS)],
    )
    config = experiment.prepare("TIGER", "tiny", {**settings, "text_fields": ["title", "price", "tags"]})
    text = read_item_text(config)["text"]
    assert text["i0"] == "Soap 0, red blue"
    assert [text[f"i{i}"] for i in (1, 3)] == ["Soap 1", "Soap 3"]
    assert [text[f"i{i}"] for i in (2, 4, 5)] == ["Soap 2, red blue", "Soap 4, red blue", "Soap 5, 12.50"]


@pytest.mark.parametrize("word", ["nan", "None", "NaT"])
def test_the_word_for_an_absent_value_as_title_of_several_items(capsys, own, word):
    folder, settings = own
    with_rows(folder, ["title:token"], [[word if i in (5, 7) else f"Soap {i}"] for i in range(N_ITEMS)])
    has(run(capsys, settings), "tiny.item", f"the title of i5, i7 is '{word}'", "leave it empty", "(2 items)")


def test_the_word_for_an_absent_value_as_title_of_one_item(own, caplog):
    """A title, perhaps: it stays, and is told."""
    caplog.set_level("WARNING")
    folder, settings = own
    with_rows(folder, ["title:token"], [["None" if i == 5 else f"Soap {i}"] for i in range(N_ITEMS)])
    assert read_item_text(experiment.prepare("TIGER", "tiny", settings)).loc["i5", "text"] == "None"
    assert "the title of i5 is 'None'" in caplog.text


@pytest.mark.parametrize("kind", ["no file", "no text", "not for all"])
def test_own_embeddings_need_no_text(own, kind):
    folder, settings = own
    settings = {**settings, "item_embeddings": str(folder / "embeddings.npz"), "epochs": 1}
    if kind == "no file":
        (folder / "tiny.item").unlink()
    else:
        rows = [["" if i % 2 else f"Soap {i}"] for i in range(N_ITEMS)]
        with_rows(folder, ["colour:token" if kind == "no text" else "title:token"], rows)
    used = {item for items in read_sequences(folder).values() for item in items}
    assert main(["compare", "--models=Pop,TIGER", "--dataset=tiny", *arguments({**settings, **QUIET})]) == 0
    results = {result["model"]: result for result in read_results("results")}
    assert results["TIGER"]["semantic_ids"]["items"] == len(used if kind == "no file" else range(N_ITEMS))
    columns = [result["settings"]["load_col"].get("item") for result in results.values()]
    expected = {"no file": None, "no text": ["item_id"], "not for all": ["item_id", "title"]}[kind]
    assert columns == [expected, expected]
    assert Recommender.load(results["TIGER"]["checkpoint"]).recommend(["i0"], k=3)


def test_own_semantic_ids_without_text(capsys, own, tmp_path):
    """What the codes start from is the text, unless that is switched off."""
    folder, settings = own
    (folder / "tiny.item").unlink()
    (tmp_path / "ids.tsv").write_text(spoiled_ids("none"))
    settings = {**settings, "semantic_ids": "ids.tsv", "epochs": 1}
    has(run(capsys, settings), "no item file", "--text_initializer=False")
    for model in ("TIGER", "SASRec"):  # both of a comparison
        experiment.prepare(
            model, "tiny", {**of_model(settings, model), "semantic_ids": settings["semantic_ids"], "text_initializer": False}
        )
    settings["text_initializer"] = False
    assert main(["run", "--model=TIGER", "--dataset=tiny", *arguments({**settings, **QUIET})]) == 0


def test_own_semantic_ids_start_from_the_text(own):
    """IDs that tokenize wrote train the weights that a run without them trains."""
    folder, settings = own
    settings = {**settings, "item_embeddings": str(folder / "embeddings.npz"), "epochs": 1, **QUIET}
    assert main(["tokenize", "--dataset=tiny", "--output=ids.tsv", *arguments(settings)]) == 0
    call = ["run", "--model=TIGER", "--dataset=tiny", *arguments(settings)]
    assert main([*call, "--results_dir=own"]) == main([*call, "--results_dir=given", "--semantic_ids=ids.tsv"]) == 0
    own_result, given = (read_results(folder)[0] for folder in ("own", "given"))
    weights = [load_checkpoint(result["checkpoint"])["state_dict"] for result in (own_result, given)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert given["settings"]["text_initializer"] is True


# --- settings ---


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"codebook_size": 61}, ["codebook_size 61", "60 items", "smaller"]),
        ({"codebook_size": 1}, ["codebook_size has to be a whole number from 2 up, not 1"]),
        ({"beam_size": 61}, ["beam_size 61", "60 items", "lower"]),
        ({"beam_size": 19}, ["beam_size 19", "topk 20", "raise beam_size"]),
        ({"beam_size": 20, "topk": [5, 30]}, ["beam_size 20", "topk 30"]),
        ({"quantizer": "rq_means"}, ["unknown quantizer 'rq_means'", "rq_vae or rq_kmeans or vq or opq"]),
        ({"quantizer": "lsh", "codebook_size": 12}, ["codebook_size 12", "power of two"]),
        ({"scoring": "greedy"}, ["unknown scoring 'greedy'", "beam or exact"]),
        ({"encoder_tokens": "word"}, ["unknown encoder_tokens 'word'", "code or item"]),
        ({"prefix_embedding": True}, ["prefix_embedding needs --trie_softmax=True"]),
        ({"history_bias": True}, ["history_bias needs --trie_softmax=True"]),
        ({"epochs": "many"}, ["epochs", "'many'"]),
        ({"epochs": 0}, ["epochs", "positive"]),
        ({"eval_step": 0}, ["eval_step", "positive"]),
        ({"n_layers": 1.5}, ["n_layers", "1.5"]),
        ({"learning_rate": "fast"}, ["learning_rate", "'fast'"]),
        ({"hidden_dropout_prob": 1}, ["hidden_dropout_prob", "1"]),
        ({"text_fields": "title"}, ["text_fields", "list", "'title'"]),
        ({"text_fields": ["title", "title"]}, ["text_fields", "different", "'title', 'title'"]),
        ({"text_fields": ["title", "item_id"]}, ["text_fields has item_id", "not text"]),
        ({"ema_decay": 1}, ["ema_decay", "from 0 up to 1"]),
        ({"seed": "x"}, ["seed", "'x'"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": 2**32}, ["seed 4294967296 is too large", "4294967295"]),
        ({"stopping_step": None}, ["stopping_step", "whole number", "None"]),
        ({"field_separator": ""}, ["field_separator", "text", "''", "--field_separator='\"|\"'"]),
        ({"seq_separator": None}, ["seq_separator", "text", "None"]),
        ({"eval_args": {"order": "RO"}}, ["TIGER is a sequential model", "TO, not RO"]),
        ({"weight_decay": True}, ["weight_decay", "number from 0 up", "True"]),
        ({"learner": "adafactor"}, ["unknown learner 'adafactor'", "adam or adamw"]),
        ({"betas": 0.9}, ["betas", "two numbers", "0.9"]),
        ({"betas": None}, ["betas", "two numbers", "None"]),
        ({"clip_grad_norm": 1.0}, ["clip_grad_norm", "max_norm", "1.0"]),
        ({"weight_decay": "a"}, ["weight_decay", "'a'"]),
        ({"n_user_tokens": -5}, ["n_user_tokens", "-5"]),
        ({"eval_batch_size": 0}, ["eval_batch_size", "positive"]),
        ({"kmeans_sample": 5}, ["kmeans_sample 5", "codebook_size 8"]),
        ({"quantizer": "rq_vae", "rq_vae_steps": 1000}, ["rq_vae_warmup_steps 1200", "1000 rq_vae_steps"]),
        ({"quantizer": "rq_vae", "rq_vae_warmup_steps": 0.8}, ["rq_vae_warmup_steps", "whole number", "0.8"]),
        ({"quantizer": "rq_vae", "rq_vae_learning_rate": "fast"}, ["rq_vae_learning_rate", "'fast'"]),
        ({"quantizer": "rq_vae", "rq_vae_beta": -1}, ["rq_vae_beta", "-1"]),
        ({"quantizer": "rq_vae", "rq_vae_hidden_sizes": 512}, ["rq_vae_hidden_sizes", "list", "512"]),
        ({"metrics": ["Recal"]}, ["Recal"]),
        ({"valid_metric": "NDCG@7"}, ["valid_metric NDCG@7", "topk"]),
        ({"valid_metric": "NDCG"}, ["valid_metric NDCG is not among", "NDCG@10"]),
        ({"metrics": ["GAUC"], "valid_metric": "GAUC@10", "scoring": "exact"}, ["valid_metric GAUC@10 is not among"]),
        ({"metrics": ["NDCG", "GAUC"]}, ["GAUC ranks the whole catalogue", "a beam finds", "--scoring=exact"]),
        ({"topk": []}, ["topk"]),
        ({"label": "../x"}, ["label '../x'", "file name"]),
        ({"label": 7}, ["label has to be text, not 7", "--label='\"7\"'"]),
        ({"label": ""}, ["label has to be text"]),
        ({"label": "x" * 180}, ["label 'xxx", "too long for a file name"]),
        ({"LIST_SUFFIX": None}, ["LIST_SUFFIX has to be text"]),
        ({"encoding": "nonsense"}, ["encoding 'nonsense'", "utf-8-sig"]),
        ({"valid_metric": 5}, ["TIGER: ", "'int'"]),
        ({"checkpoint_dir": None}, ["checkpoint_dir has to be text, not None"]),
        ({"cache_dir": None}, ["cache_dir has to be text, not None"]),
        ({"text_encoder": 5}, ["text_encoder has to be text, not 5"]),
        ({"item_embeddings": 5}, ["item_embeddings has to be text, not 5"]),
        ({"semantic_ids": True}, ["semantic_ids has to be text, not True"]),
        ({"metric_decimal_place": "x"}, ["metric_decimal_place", "whole number", "'x'"]),
        ({"enable_amp": "maybe"}, ["unknown enable_amp 'maybe'", "True or False"]),
        ({"clip_grad_norm": {"max_norm": -1}}, ["clip_grad_norm, max_norm has to be a positive number, not -1"]),
        ({"clip_grad_norm": {"max_norm": 1, "foo": 2}}, ["clip_grad_norm has to be of the form"]),
        ({"eval_args": {"foo": "RO"}}, ["unknown key foo in eval_args", "split, group_by, order, mode"]),
        ({"eval_args": {"mode": "uni0"}}, ["unknown mode 'uni0'", "full, or uni100"]),
        ({"eval_args": {"mode": "labeled"}}, ["mode labeled is for models that read labels"]),
        ({"eval_args": {"split": {"LS": "valid_and_test", "RS": [0.8, 0.1, 0.1]}}}, ["unknown split"]),
        ({"shuffle": False}, ["shuffle has no effect on TIGER"]),
        ({"transform": "mask_itemseq"}, ["transform has no effect on TIGER"]),
        ({"eval_args": {"split": {"RS": 0.8}}}, ["unknown split {'RS': 0.8}", "{RS: [0.8,0.1,0.1]}"]),
        ({"eval_args": {"split": {"RS": [0.8, -0.1, 0.3]}}}, ["-0.1", "unknown split"]),
        ({"user_inter_num_interval": 5}, ["user_inter_num_interval has to be an interval like '[5,inf)'", "not 5"]),
        ({"item_inter_num_interval": [5, "inf"]}, ["item_inter_num_interval has to be an interval"]),
        ({"val_interval": {"price": 3}}, ["val_interval of price has to be an interval"]),
        ({"val_interval": {"price": [3, 5]}}, ["val_interval of price lists values that are not text: [3, 5]"]),
        ({"val_interval": {"item_id": ["i1", 2]}}, ["val_interval of item_id lists values that are not text"]),
        ({"val_interval": 5}, ["val_interval has to be of the form", "not 5"]),
        ({"item_embeddings": "absent.npz"}, ["absent.npz does not exist"]),
        ({"semantic_ids": "absent.tsv"}, ["absent.tsv does not exist"]),
        ({"dataset_save_path": "x.pth"}, ["dataset_save_path", "can run code", "remove"]),
        ({"dataloaders_save_path": "x.pth"}, ["dataloaders_save_path", "can run code", "remove"]),
        ({"save_dataset": True}, ["save_dataset", "can run code", "remove"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_setting_that_cannot_work(capsys, own, change, parts):
    _, settings = own
    has(run(capsys, {**settings, **change}), *parts)


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"threshold": {"price": 4}}, ["threshold is for models that read labels", "--val_interval="]),
        ({"LABEL_FIELD": "bought"}, ["LABEL_FIELD is for models that read labels", "--val_interval="]),
        (
            {"load_col": {"inter": ["user_id", "item_id", "label"]}},
            ["column label in load_col is for models"],
        ),
        ({"use_gpu": False}, ["use_gpu does not choose", "--gpu_id="]),
        ({"valid_metric_bigger": False}, ["valid_metric_bigger follows from valid_metric, NDCG@10"]),
        ({"TIME_FIELD": None}, ["TIME_FIELD has to be text, not None", '"timestamp"']),
        ({"USER_ID_FIELD": None}, ["USER_ID_FIELD has to be text, not None", '"user_id"']),
        ({"ITEM_ID_FIELD": None}, ["ITEM_ID_FIELD has to be text, not None", '"item_id"']),
        ({"topk": "5,10"}, ["topk has to be a list", "[5,10]", "'5,10'"]),
        ({"topk": [5, "10"]}, ["topk has to be a list", "[5, '10']"]),
        ({"topk": [5, -1]}, ["topk has to be a list"]),
        ({"MAX_ITEM_LIST_LENGTH": 0}, ["MAX_ITEM_LIST_LENGTH has to be a positive whole number, not 0"]),
        ({"load_col": ["user_id", "item_id"]}, ["load_col has to be of the form"]),
        ({"alias_of_item_id": True}, ["alias_of_item_id has to be a list of columns", "True"]),
        ({"numerical_features": "price"}, ["numerical_features has to be a list of columns", "'price'"]),
        (
            {"benchmark_filename": ["train", "test"]},
            ["benchmark_filename has to be a list of the three", "['train', 'test']"],
        ),
        ({"benchmark_filename": "train"}, ["benchmark_filename has to be a list of the three", "'train'"]),
        ({"encoding": "base64"}, ["encoding 'base64'", "utf-8-sig"]),
        ({"reg_weight": [None]}, ["reg_weight has to be a number from 0 up, not [None]"]),
        ({"worker": 1, "eval_args": {"mode": "uni20"}}, ["mode uni20", "leave out worker"]),
        ({"log_wandb": True}, ["log_wandb needs the package wandb", "pip install wandb"]),
        ({"neg_sampling": {"uniform": 1}}, ["older versions of RecBole: give train_neg_sample_args"]),
        ({"min_user_inter_num": 5}, ["older versions of RecBole: give user_inter_num_interval"]),
        ({"config_file": "mine.yaml"}, ["config_file", "is not read", "--config_files=..."]),
    ],
    ids=str,
)
def test_setting_that_works_with_no_model(capsys, own, model, change, parts):
    _, settings = own
    has(run(capsys, {**of_model(settings, model), **change}, model=model), *parts)


def test_lists_of_labelled_rows(capsys, own):
    settings = {**of_model(own[1], "FM"), "eval_args": {"mode": "labeled"}}
    has(run(capsys, settings, model="FM"), "mode labeled", "not lists as Recall, NDCG, MRR", "AUC")


def test_a_quantizer_that_is_no_name(capsys, settings):
    del settings["quantizer"]
    call = ["compare", "--models=TIGER", "--dataset=tiny", "--quantizer=[lsh]"]
    has(refused(capsys, call, settings), "quantizer has to be text, not ['lsh']")


def test_labels_that_all_columns_bring_along(capsys, own):
    folder, settings = own
    head, *lines = (folder / "tiny.inter").read_text().splitlines()
    (folder / "tiny.inter").write_text("\n".join([f"{head}\tlabel:float", *(f"{line}\t1" for line in lines)]) + "\n")
    has(run(capsys, {**settings, "load_col": {"inter": "*", "item": "*"}}), "the column label in load_col is for models")


def test_setting_that_a_file_has_twice(capsys, own):
    Path("mine.yaml").write_text("epochs: 3\nn_layers: 1\nepochs: 5\n")
    has(run(capsys, own[1], "--config_files=mine.yaml"), "mine.yaml", "epochs is there twice", "line 1")


@pytest.mark.parametrize("change", [{"val_interval": {"price": "[1,inf)"}}, {"user_inter_num_interval": "[5,inf)"}], ids=str)
def test_filters_that_pre_split_files_pass_by(capsys, split, change):
    (key,) = change
    has(run(capsys, {**split[1], **change}), f"{key} has no effect on pre-split files")


def test_ratings_that_an_interval_leaves_out(own):
    """What a refused threshold is told to be replaced by."""
    folder, settings = own
    lines = (folder / "tiny.inter").read_text().splitlines()
    lines = [lines[0] + "\trating:float", *(f"{line}\t{number % 5 + 1}" for number, line in enumerate(lines[1:]))]
    (folder / "tiny.inter").write_text("\n".join(lines) + "\n")
    more = {
        "load_col": {"inter": ["user_id", "item_id", "timestamp", "rating"], "item": ["item_id", "title"]},
        "val_interval": {"rating": "[4,inf)"},
    }
    dataset = create_dataset(experiment.prepare("SASRec", "tiny", {**of_model(settings, "SASRec"), **more}))
    assert len(dataset.inter_feat) == sum(line.endswith(("\t4", "\t5")) for line in lines[1:])


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_text_that_looks_like_a_number_stays_text(own, model):
    _, settings = own
    change = {"label": "47e4663", "val_interval": {"item_id": ["1e3", "i1"]}}
    config = experiment.prepare(model, "tiny", {**of_model(settings, model), **change})
    assert (config["label"], config["val_interval"]) == (change["label"], change["val_interval"])


def test_a_date_that_does_not_exist(capsys, settings, tmp_path):
    """YAML reads it as a date, and fails with another error than for other text."""
    (tmp_path / "mine.yaml").write_text("label: 2024-02-30\n")
    has(run(capsys, settings, "--config_files=mine.yaml"), "mine.yaml is not YAML", "day")
    assert parse_arguments(["--label=2024-02-30"]) == {"label": "2024-02-30"}


@pytest.mark.parametrize("key", ["on", "1", "2.5", "null"])
def test_yaml_key_that_is_no_text(capsys, settings, tmp_path, key):
    (tmp_path / "mine.yaml").write_text(f"{key}: 3\n")
    has(run(capsys, settings, "--config_files=mine.yaml"), "mine.yaml is not a name of a setting", "YAML reads")


@pytest.mark.parametrize("name", ["ml-100k", "netflix"])
@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_a_dataset_of_ones_own_with_a_name_of_recboles(tmp_path, settings, name, model):
    """RecBole bundles ml-100k and lists netflix."""
    write_dataset(tmp_path / "data", name)
    settings = {**of_model(settings, model), "data_path": str(tmp_path / "data")}
    config = experiment.prepare(model, name, settings)
    assert Path(config["data_path"]) == tmp_path / "data" / name
    assert config["load_col"]["item"] == ["item_id", "title", "brand", "price"]
    assert create_dataset(config).item_num == N_ITEMS + 1
    plain = experiment.prepare(model, "tiny", {**settings, "data_path": str(write_dataset(tmp_path / "data").parent)})
    different = {key for key, value in config.final_config_dict.items() if plain[key] != value}
    assert different <= {"dataset", "data_path", "eval_batch_size", "input_hashes"}


def test_recboles_sample_where_there_is_no_dataset_of_that_name(tmp_path):
    config = experiment.prepare("SASRec", "ml-100k", {"data_path": str(tmp_path)})
    assert Path(config["data_path"]).parent.name == "dataset_example"
    assert config["text_fields"] == ["movie_title", "class", "release_year"]


def test_files_that_change_during_a_run(own):
    """Its result would bear the hash of other files than it was made of."""
    folder, settings = own
    config = experiment.prepare("SASRec", "tiny", of_model(settings, "SASRec"))
    key = run_key(config)
    file = folder / "tiny.inter"
    file.write_text(file.read_text() + "u3\ti7\t9000\n")
    assert run_key(config) == key
    with pytest.raises(TigerError, match="have changed since this run began: run it again"):
        experiment.load(config)
    assert run_key(experiment.prepare("SASRec", "tiny", of_model(settings, "SASRec"))) != key


def test_a_folder_that_takes_no_logs(capsys, data_path):
    Path("log").touch()
    call = ["run", "--model=Pop", "--dataset=tiny", f"--data_path={data_path}"]
    has(refused(capsys, call), "log/ and log_tensorboard/", str(Path.cwd()), "run the command in another folder")


def compared(capsys, settings, models="SASRec,TIGER"):
    """The sentence with which compare is refused, before any of its models is trained."""
    capsys.readouterr()
    assert main(["compare", f"--models={models}", "--dataset=tiny", *arguments({**settings, **QUIET})]) == 2
    assert not list(Path().rglob("*.pth")) and not list(Path().rglob("*.json"))
    return sentence(capsys)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"codebook_size": 61}, ["codebook_size 61 is larger than the catalogue of 60 items"]),
        ({"item_embeddings": "absent.npz"}, ["absent.npz does not exist"]),
        ({"item_embeddings": None, "text_encoder": "no/such/encoder"}, ["text_encoder 'no/such/encoder'", "give a folder"]),
        ({"item_embeddings": "same.npz"}, ["codebook 1 has collapsed"]),
        ({"semantic_ids": "absent.tsv"}, ["absent.tsv does not exist"]),
        ({"n_heads": 3, "models": "TIGER,SASRec"}, ["SASRec on tiny: RecBole refuses"]),
        ({"topk": [61], "beam_size": 61, "valid_metric": "NDCG@61", "models": "TIGER,SASRec"}, ["61", "60 items", "lower"]),
        ({"checkpoint_dir": "file"}, ["cannot make the folder file"]),
    ],
    ids=str,
)
def test_compare_checks_all_models_before_it_trains_one(capsys, settings, change, parts):
    np.savez("same.npz", items=np.array([f"i{i}" for i in range(N_ITEMS)]), embeddings=np.ones((N_ITEMS, 4)))
    Path("file").touch()
    models = change.get("models", "SASRec,TIGER")
    has(compared(capsys, {**settings, **{k: v for k, v in change.items() if k != "models"}}, models), *parts)


def test_compare_always_reads_finished_runs(capsys, settings):
    has(compared(capsys, {**settings, "resume": False}), "reads finished runs", "leave resume out")


def test_compare_checks_the_text_before_it_trains(capsys, own):
    folder, settings = own
    with_rows(folder, ["title:token"], [["" if i == 5 else f"Soap {i}"] for i in range(N_ITEMS)])
    has(compared(capsys, settings), "1 items have no text", "i5")


def test_compare_reads_results_before_it_trains(settings):
    settings = {**settings, **QUIET}
    call = ["compare", "--dataset=tiny", *arguments(settings)]
    assert main([*call, "--models=Pop"]) == 0
    (file,) = Path("results").glob("*.json")
    file.write_text("{")
    before = files_under(".")
    assert main([*call, "--models=TIGER,Pop"]) == 2
    assert files_under(".") == before


@pytest.mark.parametrize("model", ["SASRec", "TIGER"])
def test_lists_longer_than_the_catalogue(capsys, settings, model):
    more = {"topk": [10, 100], **({"beam_size": 100} if model == "TIGER" else {})}
    has(compared(capsys, {**of_model(settings, model), **more}, model), "100", "catalogue of 60 items", "lower it")


def test_rehearsing_changes_no_result(settings):
    """Each model of a comparison is made twice."""
    settings = {**settings, **QUIET, "epochs": 1}
    assert main(["compare", "--models=TIGER,SASRec", "--dataset=tiny", "--results_dir=both", *arguments(settings)]) == 0
    assert main(["compare", "--models=SASRec", "--dataset=tiny", "--results_dir=one", *arguments(settings)]) == 0
    both, one = ({r["model"]: r for r in read_results(folder)} for folder in ("both", "one"))
    for key in ("test_result", "best_valid_result", "settings", "data_hash"):
        assert both["SASRec"][key] == one["SASRec"][key]


def test_text_fields_that_cannot_work_with_another_model(capsys, data_path):
    for fields, shown in (("title", "'title'"), ([2024], "[2024]")):
        settings = {"data_path": str(data_path), "text_fields": fields}
        has(run(capsys, settings, model="SASRec"), "text_fields has to be a list", shown)


@pytest.mark.parametrize(("key", "value"), [("learning_rate", ".nan"), ("learning_rate", ".inf"), ("max_minutes", ".nan")])
def test_setting_that_is_not_finite(capsys, data_path, key, value):
    call = ["run", "--model=SASRec", "--dataset=tiny", f"--data_path={data_path}", f"--{key}={value}"]
    has(refused(capsys, call), f"{key} has to be a positive number, not {value[1:]}")


@pytest.mark.parametrize(
    ("model", "change", "parts"),
    [
        ("TIGER", {"user_inter_num_interval": "[500,inf)"}, ["TIGER on tiny", "filters leave no interaction"]),
        ("SASRec", {"item_inter_num_interval": "[500,inf)"}, ["SASRec on tiny", "filters leave no interaction"]),
        ("TIGER", {"rm_dup_inter": "foo"}, ["TIGER on tiny: RecBole refuses", "ValueError", "keep must be"]),
        ("SASRec", {"n_heads": 3}, ["SASRec on tiny: RecBole refuses", "ValueError", "(3)"]),
        (
            "SASRec",
            {"loss_type": "XX", "train_neg_sample_args": None},
            ["SASRec on tiny: RecBole refuses", "NotImplementedError", "'loss_type' in"],
        ),
    ],
    ids=str,
)
def test_what_recbole_refuses(capsys, settings, model, change, parts):
    assert (
        main(["run", f"--model={model}", "--dataset=tiny", *arguments({**of_model(settings, model), **QUIET, **change})])
        == 2
    )
    has(sentence(capsys), *parts)
    assert not Path("results").exists() or not list(Path("results").iterdir())


@pytest.mark.parametrize(("model", "stage"), [("S3Rec", "pretrain"), ("RaCT", "actor_pretrain")])
def test_a_model_that_is_to_be_pretrained(capsys, data_path, model, stage):
    has(run(capsys, {"data_path": str(data_path)}, model=model), model, f"train_stage {stage}", "--train_stage=finetune")


@pytest.mark.parametrize("model", ["XGBoost", "LightGBM"])
def test_a_model_without_epochs(capsys, data_path, model):
    has(run(capsys, {"data_path": str(data_path)}, model=model), model, "not trained in epochs", "another model")


def test_a_model_of_knowledge_without_its_files(capsys, data_path):
    has(run(capsys, {"data_path": str(data_path)}, model="CKE"), "CKE needs", "tiny.kg", "does not exist")


@pytest.mark.parametrize("model", ["SASRec", "TIGER"])
def test_a_loss_that_is_no_number(capsys, settings, model):
    """A step so large that the next loss is none."""
    settings = settings if model == "TIGER" else {"data_path": settings["data_path"], "show_progress": False}
    settings = {**settings, **QUIET, "learning_rate": 1e30, "epochs": 5, "learner": "sgd"}
    assert main(["run", f"--model={model}", "--dataset=tiny", *arguments(settings)]) == 2
    has(sentence(capsys), "diverged", "lower learning_rate, now 1e+30")


@pytest.mark.parametrize("change", [{"epochs": 0}, {"eval_step": 0}, {"epochs": "many"}], ids=str)
def test_setting_that_cannot_work_with_another_model(capsys, data_path, change):
    (key,) = change
    has(run(capsys, {"data_path": str(data_path), **change}, model="SASRec"), key, "positive")


def test_split_without_validation(capsys, own):
    _, settings = own
    eval_args = {"split": {"RS": [0.8, 0, 0.2]}, "order": "TO", "mode": "full"}
    has(run(capsys, {**settings, "eval_args": eval_args}), "validation", "eval_args")


def test_unknown_model(capsys, data_path):
    settings = {"data_path": str(data_path)}
    has(run(capsys, settings, model="Tiger"), "unknown model 'Tiger'", "did you mean TIGER?")
    has(refused(capsys, ["compare", "--models=TIGER,SASREC", "--dataset=tiny"], settings), "'SASREC'", "SASRec?")
    has(refused(capsys, ["compare", "--models=TIGER,TIGER", "--dataset=tiny"], settings), "named twice: TIGER")
    has(refused(capsys, ["compare", "--models=,", "--dataset=tiny"], settings), "no model", "--models=")


@pytest.mark.parametrize(
    ("argument", "inner"),
    [("--eval_args={mode:uni100}", "mode:uni100"), ("--train_neg_sample_args={a: [{b:2}]}", "b:2")],
)
@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_a_mapping_without_the_space_after_a_colon(capsys, data_path, model, argument, inner):
    call = ["run", f"--model={model}", "--dataset=tiny", f"--data_path={data_path}", argument]
    has(refused(capsys, call), f"{argument[2:].partition('=')[0]} in the command line: {inner!r} lacks the space")


def test_intervals_that_recbole_reads(settings):
    own = {
        "user_inter_num_interval": "[2,inf)",
        "item_inter_num_interval": "(0,3];[4, 1000]",
        "val_interval": {"price": "[1,inf)"},
    }
    assert experiment.prepare("TIGER", "tiny", {**settings, **own})["user_inter_num_interval"] == "[2,inf)"


def test_a_label_for_several_models(capsys, data_path):
    call = ["compare", "--models=Pop,SASRec", "--dataset=tiny", f"--data_path={data_path}", "--label=x"]
    has(refused(capsys, call), "label names the row of one run", "leave it out")


@pytest.mark.parametrize("folder", ["checkpoint_dir", "cache_dir"])
def test_a_folder_that_cannot_be_made(capsys, settings, folder):
    Path("file").touch()
    has(run(capsys, {**settings, folder: "file"}), "cannot make the folder file", "choose another")


@pytest.mark.parametrize("folder", ["checkpoint_dir", "results_dir", "cache_dir"])
def test_a_folder_in_which_no_file_can_be_made(capsys, settings, folder):
    """Such as a system's folder, where not even the superuser can make files."""
    settings.pop(folder, None)
    has(run(capsys, settings, f"--{folder}=/sys/kernel"), "cannot write /sys/kernel/", "choose another folder")
    assert not list(Path().glob("saved/*.pth"))


def test_output_of_tokenize_that_cannot_be_written(capsys, settings):
    Path("folder").mkdir()
    Path("file").touch()
    for output, part in (("folder", "folder is a folder: name a file"), ("file/ids.tsv", "cannot make the folder file")):
        has(refused(capsys, ["tokenize", "--dataset=tiny", f"--output={output}"], settings), part)


def test_run_recbole_without_evaluation_keeps_the_last_epoch(settings):
    """What a run refuses above RecBole itself allows: eval_step 0."""
    result = run_recbole(model="TIGER", dataset="tiny", config_dict={**settings, "eval_step": 0})
    assert 0 < result["test_result"]["recall@20"] <= 1


def test_misspelt_setting(capsys, own, tmp_path):
    _, settings = own
    message = run(capsys, {**settings, "codebok_size": 8})
    has(message, "unknown setting 'codebok_size' in the command line", "did you mean codebook_size?")
    (tmp_path / "mine.yaml").write_text("learning_rte: 0.1\n")
    message = run(capsys, settings, "--config_files=mine.yaml")
    has(message, "unknown setting 'learning_rte' in mine.yaml", "did you mean learning_rate?")
    (tmp_path / "mine.yaml").write_text("model: TIGER-text\n")
    has(run(capsys, settings, "--config_files=mine.yaml"), "model in mine.yaml is not a setting", "--help")
    has(refused(capsys, ["compare", "--model=TIGER", "--models=SASRec", "--dataset=tiny"]), "model in the command line")


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("--epochs", ["'--epochs'", "--key=value"]),
        ("epochs=3", ["'epochs=3'", "--key=value"]),
        ("--config_files=absent.yaml", ["absent.yaml does not exist"]),
        ("--config_files=list.yaml", ["list.yaml", "key: value"]),
        ("--config_files=broken.yaml", ["broken.yaml is not YAML"]),
        ("--config_files=latin.yaml", ["latin.yaml", "UTF-8"]),
        ("--epochs=2", ["'epochs'", "twice"]),
    ],
)
def test_arguments_that_cannot_be_read(capsys, settings, tmp_path, argument, parts):
    (tmp_path / "list.yaml").write_text("- epochs\n")
    (tmp_path / "broken.yaml").write_text("epochs: [1,\n")
    (tmp_path / "latin.yaml").write_bytes("label: Crème\n".encode("latin-1"))
    has(run(capsys, settings, argument), *parts)


# --- encoder and embeddings ---


@pytest.mark.parametrize("name", ["no/such/encoder", "./no-such-folder", "empty"])
def test_encoder_that_is_not_there(capsys, own, name):
    Path("empty").mkdir()
    _, settings = own
    message = run(capsys, {**settings, "text_encoder": name})
    has(message, f"text_encoder {name!r}", "not on this machine", "give a folder", "--text_encoder=all-MiniLM-L6-v2")


def test_encoder_that_cannot_be_fetched(own, tmp_path):
    _, settings = own
    settings = {**settings, **QUIET, "text_encoder": "sentence-transformers/sentence-t5-base"}
    done = subprocess.run(
        [sys.executable, "-m", "recbole_tiger", "tokenize", "--dataset=tiny", *arguments(settings)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    has(last, "recbole-tiger: error: ", "sentence-t5-base", "not on this machine", "give a folder")
    assert "Traceback" not in done.stderr
    assert not Path(settings["cache_dir"]).exists()


class Runs:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def spoiled_embeddings(kind, tokens, x, marker):
    """Arrays for an item_embeddings file with a fault."""
    if kind == "rows":
        return {"items": tokens, "embeddings": x[:-1]}
    if kind == "one dimension":
        return {"items": tokens, "embeddings": x[:, 0]}
    if kind == "missing items":
        return {"items": tokens[2:], "embeddings": x[2:]}
    if kind == "repeated items":
        return {"items": np.append(tokens, tokens[3]), "embeddings": np.append(x, x[:1], axis=0)}
    if kind in ("nan", "inf"):
        x = x.copy()
        x[[4, 9], 3] = float(kind)
        return {"items": tokens, "embeddings": x}
    if kind == "text":
        return {"items": tokens, "embeddings": np.full(x.shape, "x")}
    if kind == "complex":
        return {"items": tokens, "embeddings": x * 1j}
    if kind == "one item":
        return {"items": np.array("i0"), "embeddings": x}
    if kind == "bytes":
        return {"items": np.char.encode(tokens, "utf-8"), "embeddings": x}
    if kind == "pickle":
        return {"items": tokens, "embeddings": np.array([Runs(marker)] * len(x), dtype=object)}
    return {"items": tokens}


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("rows", ["(59, 16)", "(60,)", "one row per item"]),
        ("one dimension", ["(60,)", "one row per item"]),
        ("missing items", ["lacks 2 items", "i0, i1"]),
        ("repeated items", ["more than one row", "i3"]),
        ("nan", ["2 items have NaN or inf", "i4, i9"]),
        ("inf", ["2 items have NaN or inf", "i4, i9"]),
        ("text", ["not numbers"]),
        ("complex", ["complex128, not numbers"]),
        ("one item", ["items ()", "one row per item"]),
        ("bytes", ["items holds bytes, not text", "numpy.char.decode"]),
        ("pickle", ["not an npz file of plain arrays", ".astype(str)"]),
        ("no array", ["lacks an array", "items and embeddings"]),
    ],
)
def test_embeddings_file(capsys, settings, data_path, tmp_path, kind, parts):
    with np.load(data_path / "tiny" / "embeddings.npz") as arrays:
        tokens, x = arrays["items"], arrays["embeddings"]
    np.savez(tmp_path / "mine.npz", **spoiled_embeddings(kind, tokens, x, tmp_path / "marker"))
    has(run(capsys, {**settings, "item_embeddings": "mine.npz"}), "mine.npz", *parts)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", ["npy", "pickle", "text", "empty", "short", "folder"])
def test_embeddings_file_of_another_format(capsys, settings, data_path, tmp_path, kind):
    file = tmp_path / "mine.npz"
    if kind == "npy":
        with open(file, "wb") as stream:
            np.save(stream, np.ones((60, 4)))
    elif kind == "pickle":
        file.write_bytes(pickle.dumps(Runs(tmp_path / "marker")))
    elif kind == "folder":
        file.mkdir()
    else:
        whole = (data_path / "tiny" / "embeddings.npz").read_bytes()
        file.write_bytes({"text": b"1 2 3\n", "empty": b"", "short": whole[: len(whole) // 2]}[kind])
    has(run(capsys, {**settings, "item_embeddings": "mine.npz"}), "mine.npz", "npz file", "make it anew")
    assert not (tmp_path / "marker").exists()


def test_a_file_of_embeddings_is_never_to_be_deleted(capsys, settings, tmp_path):
    for content in (b"", b"1 2 3", pickle.dumps({"i0": [1.0]}), b'{"__metadata__": {}}'):
        (tmp_path / "mine.bin").write_bytes(content)
        message = has(run(capsys, {**settings, "item_embeddings": "mine.bin"}), "mine.bin", "numpy.savez(")
        assert "delete" not in message


def test_embeddings_in_an_npy_file(capsys, settings, data_path):
    with np.load(data_path / "tiny" / "embeddings.npz") as arrays:
        tokens, x = arrays["items"], arrays["embeddings"]
    call = ["tokenize", "--dataset=tiny"]
    assert main([*call, "--output=npz.tsv", *arguments({**settings, **QUIET})]) == 0
    settings = {**settings, "item_embeddings": "mine.npy"}
    order = np.random.default_rng(0).permutation(len(tokens))
    np.save("mine.npy", x[order])
    has(refused(capsys, call, settings), "mine.npy has no item tokens", "mine.txt, one per line")
    Path("mine.txt").write_text("".join(f"{token}\n" for token in tokens[order[:-1]]))
    has(refused(capsys, call, settings), "mine.npy", "one row per item is needed")
    Path("mine.txt").write_text("".join(f"{token}\n" for token in tokens[order]))
    assert main([*call, "--output=npy.tsv", *arguments({**settings, **QUIET})]) == 0
    assert Path("npy.tsv").read_bytes() == Path("npz.tsv").read_bytes()
    before = run_key(experiment.prepare("TIGER", "tiny", settings))
    Path("mine.txt").write_text("".join(f"{token}\n" for token in tokens))
    assert run_key(experiment.prepare("TIGER", "tiny", settings)) != before
    Path("mine.dat").write_bytes(Path("mine.npy").read_bytes())  # the content tells the form
    settings["item_embeddings"] = "mine.dat"
    before = run_key(experiment.prepare("TIGER", "tiny", settings))
    Path("mine.txt").write_text("".join(f"{token}\n" for token in tokens[order]))
    assert run_key(experiment.prepare("TIGER", "tiny", settings)) != before
    settings["item_embeddings"] = "mine.npy"
    Path("mine.npy").write_bytes(Path("mine.npy").read_bytes().replace(b"'shape': (60, 16), }", b"'shape': (60, 16)   ", 1))
    has(refused(capsys, call, settings), "mine.npy is cut short", "numpy.savez(")
    np.save("mine.npy", np.array([Runs("marker")] * 60, dtype=object))
    has(refused(capsys, call, settings), "mine.npy", "Python objects")
    assert not Path("marker").exists()


def test_texts_that_differ_beyond_what_the_encoder_reads(capsys, own):
    folder, settings = own
    with_rows(folder, ["title:token"], [[" ".join(["soap"] * 400 + [f"number {i}"])] for i in range(N_ITEMS)])
    settings = {**settings, "text_encoder": "all-MiniLM-L6-v2"}
    assert main(["run", "--model=TIGER", "--dataset=tiny", *arguments({**settings, **QUIET})]) == 2
    has(sentence(capsys), "codebook 1 has collapsed", "all-MiniLM-L6-v2 reads only the first 256 tokens", "text_fields")


def test_texts_that_are_equal(capsys, own):
    """The encoder is not blamed, although its batches, of other lengths, round the embeddings of one text differently."""
    folder, settings = own
    titles = [["soap " * (1 + i % 7)] for i in range(N_ITEMS)]
    with_rows(folder, ["title:token"], titles)
    settings = {**settings, "text_encoder": "all-MiniLM-L6-v2", "codebook_size": 50}
    assert main(["tokenize", "--dataset=tiny", *arguments({**settings, **QUIET})]) == 2
    assert "reads only" not in has(sentence(capsys), "has collapsed", "check that the item texts differ")
    embeddings = encode([title for (title,) in titles], load_encoder("all-MiniLM-L6-v2", "cpu"))
    for i in range(7):
        assert (embeddings[i::7] == embeddings[i]).all()


@pytest.mark.parametrize("quantizer", ["rq_kmeans", "rq_vae"])
def test_a_small_catalogue_that_two_levels_tell_apart(own, quantizer):
    """The third level has nothing left to tell."""
    folder, settings = own
    n = 20
    write_dataset(folder.parent, n_items=n)
    more = {
        "item_embeddings": str(folder / "embeddings.npz"),
        "codebook_size": 16,
        "codebook_depth": 3,
        "quantizer": quantizer,
    }
    call = ["tokenize", "--dataset=tiny", "--output=ids.tsv", *arguments({**settings, **more, **QUIET})]
    assert main(call) == 0
    codes = SemanticIDs.load("ids.tsv").codes
    assert len(np.unique(codes[:, :2], axis=0)) > n - 16


# --- semantic IDs ---


def spoiled_ids(kind):
    """Lines of a semantic-ID file with a fault."""
    lines = ["item\tcode_1\tcode_2\tcollision", *(f"i{i}\t{i % 5}\t{i // 5}\t0" for i in range(60))]
    changed = {
        "duplicate": {8: "i7\t2\t0\t0"},
        "repeated item": {8: "i6\t9\t9\t9"},
        "unknown": {len(lines): "x1\t9\t9\t9"},
        "ragged": {8: "i7\t2\t1"},
        "empty line": {8: ""},
        "negative": {8: "i7\t-2\t1\t0"},
        "fraction": {8: "i7\t2.0\t1\t0"},
        "word": {8: "i7\ttwo\t1\t0"},
        "huge": {8: f"i7\t{10**30}\t1\t0"},
        "gaps": {8: "i7\t2\t9000000\t0"},
        "no header": {0: "i60\t1\t2\t3"},
        "no collision level": {0: "item\tcode_1\tcode_2\tcode_3"},
    }
    if kind == "missing":
        del lines[8:10]
    for number, line in changed.get(kind, {}).items():
        lines[number : number + 1] = [line]
    return "\n".join(lines[:1] if kind == "no rows" else lines) + "\n"


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("missing", ["lacks 2 items", "i7", "i8", "add their IDs"]),
        ("unknown", ["1 items that the dataset lacks: x1", "remove"]),
        ("duplicate", ["repeat the ID", "(2, 0, 0)", "i2, i7", "last column"]),
        ("repeated item", ["more than one row: i6"]),
        ("ragged", ["line 9", "2 codes", "3"]),
        ("empty line", ["line 9", "0 codes"]),
        ("negative", ["line 9", "non-negative integers", "-2"]),
        ("fraction", ["line 9", "non-negative integers", "2.0"]),
        ("word", ["line 9", "non-negative integers", "two"]),
        ("huge", ["line 9", "non-negative integers", "1" + "0" * 30]),
        ("gaps", ["the code 9000000", "number the codes of each level from 0"]),
        ("no header", ["line 1", "header", "item, code_1"]),
        ("no collision level", ["line 1", "header", "..., collision"]),
        ("no rows", ["at least one item"]),
    ],
)
def test_semantic_id_file(capsys, own, tmp_path, kind, parts):
    (tmp_path / "ids.tsv").write_text(spoiled_ids(kind))
    has(run(capsys, {**own[1], "semantic_ids": "ids.tsv"}), "ids.tsv", *parts)


def test_embeddings_that_are_all_equal(capsys, settings):
    """The tree has one level, and no error of reconstruction relative to the mean."""
    np.savez("same.npz", items=np.array([f"i{i}" for i in range(N_ITEMS)]), embeddings=np.ones((N_ITEMS, 4)))
    settings |= {"item_embeddings": "same.npz", "quantizer": "hierarchical_kmeans", "hierarchical_branches": N_ITEMS + 1}
    assert main(["tokenize", "--dataset=tiny", *arguments(settings)]) == 0
    assert "reconstruction_error" not in capsys.readouterr().out


def test_semantic_id_file_that_is_not_text(capsys, own, tmp_path):
    (tmp_path / "ids.tsv").write_bytes(b"\x93NUMPY\xff\x00")
    has(run(capsys, {**own[1], "semantic_ids": "ids.tsv"}), "ids.tsv", "not a text file")


def test_semantic_id_file_without_a_fault_is_used(own, tmp_path):
    """So that the faults above are what is refused."""
    (tmp_path / "ids.tsv").write_text(spoiled_ids("none"))
    settings = {**own[1], "semantic_ids": "ids.tsv"}
    assert main(["tokenize", "--dataset=tiny", "--output=again.tsv", *arguments(settings)]) == 0
    ids = SemanticIDs.load("again.tsv")
    assert ids.codes[ids.items.index("i7")].tolist() == [2, 1, 0]


# --- caches ---


def test_cached_embeddings_cut_short(capsys, settings):
    settings = {**settings, "item_embeddings": None}
    call = ["tokenize", "--dataset=tiny"]
    assert main([*call, *arguments(settings)]) == 0
    (cache,) = Path(settings["cache_dir"]).glob("embeddings-*.npz")
    whole = cache.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        cache.write_bytes(whole[:size])
        has(refused(capsys, call, settings), cache, "cut short", "delete it")
    cache.unlink()
    assert main([*call, *arguments(settings)]) == 0
    assert cache.read_bytes() == whole


def test_cached_semantic_ids_of_another_revision(settings, monkeypatch):
    """The same settings made other codes then."""
    caches = Path(settings["cache_dir"])
    first = built(settings)[2].network.codes
    (cache,) = caches.glob("quantized-*.npz")
    monkeypatch.setattr(RQKMeans, "REVISION", RQKMeans.REVISION + 1)
    arrays = dict(np.load(cache))
    np.savez(cache, **arrays | {"semantic_ids": arrays["semantic_ids"][::-1]})  # as earlier code may have made them
    assert torch.equal(built(settings)[2].network.codes, first)
    assert len(list(caches.glob("quantized-*.npz"))) == 2


def test_cached_semantic_ids_cut_short(capsys, settings):
    call = ["tokenize", "--dataset=tiny"]
    assert main([*call, *arguments(settings)]) == 0
    (cache,) = Path(settings["cache_dir"]).glob("quantized-*.npz")
    whole = cache.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 2):
        cache.write_bytes(whole[:size])
        has(refused(capsys, call, settings), cache, "cut short", "delete it")
    cache.unlink()
    assert main([*call, *arguments(settings)]) == 0
    assert cache.read_bytes() == whole


@pytest.mark.parametrize("kind", ["embeddings", "second level", "texts"])
def test_collapsed_codebook(capsys, own, tmp_path, kind):
    folder, settings = own
    settings = {**settings, "item_embeddings": "same.npz"}
    x = np.ones((N_ITEMS, 16), dtype=np.float32)
    if kind == "second level":
        x[:30] = 2
        settings["codebook_size"] = 2
    elif kind == "texts":
        lines = ["item_id:token\ttitle:token", *(f"i{i}\tThe same soap" for i in range(N_ITEMS))]
        (folder / "tiny.item").write_text("\n".join(lines) + "\n")
        settings |= {"item_embeddings": None, "text_encoder": "all-MiniLM-L6-v2"}
    np.savez(tmp_path / "same.npz", items=np.array([f"i{i}" for i in range(N_ITEMS)]), embeddings=x)
    before = files_under(".")
    assert main(["run", "--model=TIGER", "--dataset=tiny", *arguments({**settings, **QUIET})]) == 2
    level, size = (2, 2) if kind == "second level" else (1, 8)
    has(sentence(capsys), f"codebook {level} has collapsed: 1 of {size} codes used", "check that the item texts differ")
    left = set(files_under(".")) - set(before)
    assert len(left) == (kind == "texts")
    assert all(Path(file).name.startswith("embeddings-") for file in left)  # whole, and as good as before


# --- checkpoints ---


def test_checkpoint_cut_short(capsys, trained, tmp_path):
    files, _ = trained
    whole = files["TIGER"].read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "short.pth").write_bytes(whole[:size])
        call = ["recommend", "--checkpoint=short.pth", "--history=i1"]
        has(refused(capsys, call), "short.pth", "cut short", "give another")
        with pytest.raises(TigerError, match=r"short\.pth is cut short"):
            load_data_and_model("short.pth")
    has(refused(capsys, ["recommend", "--checkpoint=absent.pth", "--history=i1"]), "absent.pth does not exist")
    has(refused(capsys, ["recommend", "--checkpoint=.", "--history=i1"]), ". is a folder, not a checkpoint")


def test_checkpoint_with_a_flipped_bit(capsys, trained, tmp_path):
    """PyTorch reads on where it is in the settings, or in the weights of the model."""
    whole = trained[0]["TIGER"].read_bytes()
    places = [whole.index(b"gpu_id") - 2, whole.index(b"item_embeddings") + 3, len(whole) // 2]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / "mine.pth").write_bytes(damaged)
        message = refused(capsys, ["recommend", "--checkpoint=mine.pth", "--history=i1,i2"])
        has(message, "mine.pth is a damaged checkpoint", "give another")


@pytest.mark.parametrize("content", [torch.ones(3), {"state_dict": {}}, [1, 2]], ids=["tensor", "dict", "list"])
def test_file_of_pytorch_that_is_no_checkpoint(capsys, tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    has(refused(capsys, ["recommend", "--checkpoint=other.pth", "--history=i1"]), "other.pth", "not a checkpoint")


def test_checkpoint_of_another_model(capsys, trained, settings):
    files, _ = trained
    call = ["recommend", f"--checkpoint={files['SASRec']}", "--history=i1"]
    has(refused(capsys, call), files["SASRec"], "of SASRec, which reads no semantic IDs: give one of TIGER")
    _, data, _, trainer = built(settings)
    with pytest.raises(TigerError, match=r"SASRec.*\.pth is a checkpoint of SASRec, not of TIGER"):
        trainer.resume_checkpoint(files["SASRec"])
    with pytest.raises(TigerError, match=r"SASRec.*\.pth is a checkpoint of SASRec, not of TIGER"):
        trainer.evaluate(data[2], model_file=files["SASRec"])


@pytest.mark.parametrize(
    "change", [{"hidden_size": 64}, {"n_layers": 2}, {"codebook_depth": 3}, {"n_user_tokens": 10}], ids=str
)
def test_checkpoint_with_other_settings(trained, settings, change):
    files, _ = trained
    _, data, _, trainer = built({**settings, **change})
    for use in (trainer.resume_checkpoint, lambda file: trainer.evaluate(data[2], model_file=file)):
        with pytest.raises(TigerError) as error:
            use(files["TIGER"])
        has(str(error.value), files["TIGER"], "made with other settings", "use the settings and data")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("n_items", [50, 60])
def test_checkpoint_of_another_dataset(trained, settings, tmp_path, n_items):
    folder = write_dataset(tmp_path / "data", n_items=n_items)
    for file in (folder / "tiny.item", folder / "tiny.inter"):
        file.write_text(re.sub(r"\bi(\d+)\b", r"x\1", file.read_text()))
    with np.load(folder / "embeddings.npz") as arrays:
        arrays = dict(arrays)
    arrays["items"] = np.array([f"x{i}" for i in range(n_items)])
    np.savez(folder / "embeddings.npz", **arrays)
    settings |= {"data_path": str(tmp_path / "data"), "item_embeddings": str(folder / "embeddings.npz")}
    _, data, _, trainer = built(settings)
    files, _ = trained
    for use in (trainer.resume_checkpoint, lambda file: trainer.evaluate(data[2], model_file=file)):
        with pytest.raises(TigerError) as error:
            use(files["TIGER"])
        has(str(error.value), files["TIGER"], "of another dataset", "60 items, here 50" if n_items == 50 else "items differ")


def test_checkpoint_of_another_revision(capsys, trained, settings, tmp_path):
    """Its weights have the same shapes and would load, and mean something else."""
    files, _ = trained
    state = load_checkpoint(files["TIGER"])
    del state["other_parameter"]["revision"]
    save_checkpoint(state, tmp_path / "old.pth")
    _, data, model, trainer = built(settings)
    for use in (trainer.resume_checkpoint, lambda file: trainer.evaluate(data[2], model_file=file)):
        with pytest.raises(TigerError, match=r"old\.pth was made by revision 1 of the model.*train it anew"):
            use(str(tmp_path / "old.pth"))
    with pytest.raises(TigerError, match="revision 1 of the model"):
        model.load_other_parameter(state["other_parameter"])
    has(refused(capsys, ["recommend", "--checkpoint=old.pth", "--history=i1"]), "old.pth", "revision 1", "train it anew")


def test_checkpoint_of_other_codes_is_resumed_with_its_codes(trained, settings):
    """The optimizer goes on with the network that was built for them."""
    files, _ = trained
    _, _, model, trainer = built({**settings, "seed": 1})
    codes = model.network.codes.clone()
    trainer.resume_checkpoint(files["TIGER"])
    assert not torch.equal(model.network.codes, codes)
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters()}


def test_resume_from_a_damaged_state(settings):
    _, (train_data, valid_data, _), _, trainer = built({**settings, "epochs": 1})
    trainer.fit(train_data, valid_data)
    state = trainer.state_file
    state.write_bytes(state.read_bytes()[:1000])
    _, (train_data, valid_data, _), _, trainer = built({**settings, "epochs": 1, "resume": True})
    assert trainer.state_file == state
    with pytest.raises(TigerError, match=r"last\.pth is cut short.*delete"):
        trainer.fit(train_data, valid_data)


# --- code in files and values ---


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("inside", ["config", "state_dict", "extra"])
def test_checkpoint_that_carries_code(capsys, settings, tmp_path, form, inside):
    marker = tmp_path / "marker"
    if inside == "config":
        state = {"config": Runs(marker), "state_dict": {}, "other_parameter": {}}
    else:
        config, _, model, _ = built(settings)
        state = {"config": config, "state_dict": dict(model.state_dict()), "other_parameter": model.other_parameter()}
        (state if inside == "extra" else state["state_dict"])["more"] = Runs(marker)
    if form == "pickle":
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(Runs(marker)))
    else:
        torch.save(state, tmp_path / "evil.pth", pickle_protocol=2, _use_new_zipfile_serialization=form == "zip")
    has(refused(capsys, ["recommend", "--checkpoint=evil.pth", "--history=i1"]), "evil.pth")
    _, data, _, trainer = built(settings)
    uses = [Recommender.load, load_data_and_model, trainer.resume_checkpoint]
    for use in [*uses, lambda file: trainer.evaluate(data[2], model_file=file)]:
        with pytest.raises(TigerError, match=r"evil\.pth"):
            use("evil.pth")
    assert not marker.exists()
    # The very file does run where it is trusted.
    with open("evil.pth", "rb") as stream:
        pickle.load(stream) if form == "pickle" else torch.load(stream, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("name", ["posix.system", "recbole.model.absent.Model", "recbole.model.layers.MLPLayers"])
def test_checkpoint_that_refers_to_what_it_has_no_need_of(capsys, tmp_path, name):
    """A reference by name alone, as a pickle's GLOBAL opcode makes it."""
    module, _, attribute = name.rpartition(".")
    torch.save({"config": 12345}, tmp_path / "plain.pth", pickle_protocol=2)
    with zipfile.ZipFile(tmp_path / "plain.pth") as source, zipfile.ZipFile(tmp_path / "evil.pth", "w") as target:
        for entry in source.namelist():
            content = source.read(entry)
            if entry.endswith("data.pkl"):
                content = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"."
            target.writestr(entry, content)
    has(refused(capsys, ["recommend", "--checkpoint=evil.pth", "--history=i1"]), "evil.pth", name, "refused")


@pytest.mark.parametrize(
    ("model", "setting", "parts"),
    [
        ("FDSA", [], ["selected_features of FDSA names class", "title", "--selected_features"]),
        ("SASRec", ["--val_interval={rating: '[3,inf)'}"], ["val_interval of SASRec names rating", "--load_col"]),
    ],
)
def test_columns_that_are_not_there(capsys, data_path, model, setting, parts):
    command = ["run", f"--model={model}", "--dataset=tiny", f"--data_path={data_path}", "--epochs=1", *setting]
    has(refused(capsys, command), *parts)


class Built:
    """A pickle that calls what a checkpoint may name: RecBole's Config, or a model with settings of its own."""

    def __init__(self, called, *arguments):
        self.call = called, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("called", [Config, SASRec, TIGER, yaml.FullLoader])
def test_checkpoint_that_builds_what_it_may_name(capsys, tmp_path, called):
    state = {"config": Built(called, "settings"), "state_dict": {}, "other_parameter": {}}
    torch.save(state, tmp_path / "evil.pth", pickle_protocol=2)
    has(refused(capsys, ["recommend", "--checkpoint=evil.pth", "--history=i1"]), "evil.pth", "could run code", "refused")
    with pytest.raises(TigerError, match="could run code"):
        load_data_and_model("evil.pth")


def test_settings_of_a_checkpoint_are_those_that_were_saved(trained):
    config = load_checkpoint(trained[0]["TIGER"])["config"]
    assert type(config) is Config
    assert config.model_class is TIGER
    assert config.yaml_loader is yaml.FullLoader


def test_teacher_that_is_code(data_path):
    """RecBole's KD_DAGFM evaluates a setting, which a checkpoint brings along."""
    settings = {"data_path": str(data_path), "load_col": {"inter": ["user_id", "item_id"]}, "LABEL_FIELD": "label"}
    config = make_config("KD_DAGFM", "tiny", settings)
    dataset = create_dataset(config)
    config["teacher"] = "CrossNet"
    assert type(get_model("KD_DAGFM")(config, dataset).teacher_network).__name__ == "CrossNet"
    config["teacher"] = CODE
    with pytest.raises(AttributeError, match="MARKER"):
        get_model("KD_DAGFM")(config, dataset)
    assert not Path("MARKER").exists()


@pytest.mark.parametrize("key", ["dataset_save_path", "dataloaders_save_path"])
def test_checkpoint_that_names_a_pickle(trained, tmp_path, key):
    state = load_checkpoint(trained[0]["TIGER"])
    (tmp_path / "cache.bin").write_bytes(pickle.dumps(Runs(tmp_path / "marker")))
    state["config"][key] = str(tmp_path / "cache.bin")
    save_checkpoint(state, tmp_path / "evil.pth")
    with pytest.raises(TigerError, match=key):
        load_data_and_model("evil.pth")
    assert not (tmp_path / "marker").exists()


def refused_cache(capsys, settings, model, name):
    """Assert that the commands refuse a pickled cache in checkpoint_dir; returns the file that loading it would create."""
    folder, marker = Path(settings["checkpoint_dir"]), Path("marker").absolute()
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Runs(marker)))
    for command in (["run", f"--model={model}"], ["compare", f"--models={model}"]):
        message = refused(capsys, [*command, "--dataset=tiny"], settings)
        has(message, folder / name, "can run code", "remove it or choose another checkpoint_dir")
    return marker


@pytest.mark.parametrize("name", ["tiny-TIGERDataset.pth", "tiny-for-TIGER-dataloader.pth"])
def test_pickled_caches_of_recbole(capsys, settings, tmp_path, name):
    marker = refused_cache(capsys, settings, "TIGER", name)
    with pytest.raises(TigerError, match=name):
        run_recbole(model="TIGER", dataset="tiny", config_dict=dict(settings))
    assert not marker.exists()
    assert not list(tmp_path.rglob("TIGER-*.pth"))


@pytest.mark.parametrize("name", ["tiny-SequentialDataset.pth", "tiny-for-SASRec-dataloader.pth"])
def test_pickled_caches_of_another_model(capsys, settings, name):
    own = {key: settings[key] for key in ("data_path", "checkpoint_dir")}
    assert not refused_cache(capsys, own, "SASRec", name).exists()


def test_pickles_to_be_saved_by_another_model(capsys, data_path):
    settings = {"data_path": str(data_path), "save_dataset": True}
    has(run(capsys, settings, model="SASRec"), "save_dataset", "can run code", "remove")


CODE = "__import__('os').system('touch MARKER')"


def test_value_that_is_code_on_the_command_line(settings, capsys):
    call = ["run", "--model=Pop", "--dataset=tiny", f"--data_path={settings['data_path']}", "--show_progress=False"]
    assert main([*call, f"--label={CODE}"]) == 0
    assert CODE in rows_of(capsys.readouterr().out)
    (result,) = read_results("results")
    assert result["label"] == CODE
    assert not list(Path(".").rglob("MARKER"))


@pytest.mark.parametrize("where", ["config_dict", "sys.argv", "config file"])
def test_value_that_is_code_in_run_recbole(settings, monkeypatch, tmp_path, where):
    more = {"label": CODE, "wandb_project": "1/0", "seed": "7", "topk": "[2,3]", "valid_metric": "NDCG@3"}
    files = []
    if where == "sys.argv":
        monkeypatch.setattr("sys.argv", ["test", *(f"--{key}={value}" for key, value in more.items())])
        more = {}
    elif where == "config file":
        (tmp_path / "mine.yaml").write_text(f'label: "{CODE}"\nwandb_project: 1/0\ntopk: [2,3]\nvalid_metric: NDCG@3\n')
        files, more = [str(tmp_path / "mine.yaml")], {}
    config_dict = {**settings, **more, "epochs": 1, "saved": False}
    result = run_recbole(model="Pop", dataset="tiny", config_file_list=files, config_dict=config_dict, saved=False)
    assert set(result["test_result"]) >= {"recall@2", "recall@3"}  # literals are still read
    assert not list(Path(".").rglob("MARKER"))


@pytest.mark.parametrize("stock", [True, False])
def test_value_that_is_code_stays_a_string(settings, stock):
    more = {"label": CODE, "wandb_project": "1/0"}
    if stock:
        config, _, _, _ = built({**settings, **more})
    else:
        config = experiment.prepare("TIGER", "tiny", {**settings, **more})
    assert (config["label"], config["wandb_project"]) == (CODE, "1/0")
    assert not list(Path(".").rglob("MARKER"))


# --- recommending ---


@pytest.mark.parametrize(
    ("arguments_of", "parts"),
    [
        (["--history="], ["the history is empty", "at least one item"]),
        (["--history=,"], ["the history is empty"]),
        (["--history=i1\ni2"], ["history 'i1 i2' cannot be read", "separate its items by commas"]),
        (["--history=i1,x1,i2,x2"], ["2 items that the model does not know", "x1, x2"]),
        (["--history=i1", "--k=61"], ["k = 61", "60 items"]),
        (["--history=i1", "--k=0"], ["k = 0", "1 to 60"]),
        (["--history=i1", "--k=60", "--exclude_history"], ["fewer than k = 60"]),
        (["--history=i1", "--beam_size=5"], ["beam_size 5", "10"]),
        (["--history=i1", "--beam_size=61"], ["beam_size 61", "60"]),
        (["--history=i1", "--scoring=exact", "--beam_size=20"], ["scoring exact", "leave out beam_size"]),
        (["--history=i1", "--scoring=greedy"], ["unknown scoring 'greedy'", "beam or exact"]),
        (["--histories=absent.txt"], ["absent.txt does not exist"]),
        (["--history=i1", "--output=some.jsonl"], ["--output is for --histories"]),
        (["--histories=unknown.txt", "--output=."], [". is a folder: name a file in it"]),
        (["--histories=unknown.txt", "--output=/dev/null"], ["/dev/null is not a regular file: name another"]),
        (["--history=i1", "--user=u1"], ["without user tokens", "leave out the user"]),
        (["--histories=none.txt"], ["none.txt has no histories", "one per line"]),
        (["--histories=gap.txt"], ["history 2 is empty"]),
        (["--histories=unknown.txt"], ["history 2 has 1 items", "x9"]),
        (["--histories=latin.txt"], ["latin.txt", "UTF-8"]),
        (["--history=i1", "--epochs=3"], ["unknown argument '--epochs=3'"]),
        (["--history=i1", "--among=absent.txt"], ["absent.txt does not exist"]),
        (["--history=i1", "--among=none.txt"], ["among is empty"]),
        (["--history=i1", "--among=unknown.txt"], ["among has 1 items that the model does not know", "i2,x9"]),
        (["--history=i1", "--among=unknown.txt", "--where=title=soap"], ["among has 1 items that the model does not know"]),
        (["--history=i1", "--among=two.txt", "--k=3"], ["among those allowed", "fewer than k = 3"]),
        (["--history=i1", "--temperature=-1"], ["temperature has to be a positive number", "-1"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_recommend(capsys, trained, tmp_path, arguments_of, parts):
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "two.txt").write_text("i3\ni4\n")
    (tmp_path / "gap.txt").write_text("i1\n\ni2\n")
    (tmp_path / "unknown.txt").write_text("i1\ni2,x9\n")
    (tmp_path / "latin.txt").write_bytes("i1,Crème\n".encode("latin-1"))
    has(refused(capsys, ["recommend", f"--checkpoint={trained[0]['TIGER']}", *arguments_of]), *parts)


def test_exact_scoring_needs_no_beam_that_fits(settings):
    """Neither the catalogue nor the lists; a beam that is asked for later is as wide as the catalogue."""
    own = {**settings, "scoring": "exact", "beam_size": 70, "topk": [10, 60]}
    result = experiment.run(experiment.prepare("TIGER", "tiny", own), "results")
    recommender = Recommender.load(result["checkpoint"])
    lists = [recommender.recommend(["i1"], k=60, scoring=scoring) for scoring in ("beam", "exact")]
    assert [row["item"] for row in lists[0]] == [row["item"] for row in lists[1]]
    experiment.prepare("TIGER", "tiny", {**own, "beam_size": 20})


def test_recommend_from_python(trained):
    recommender = Recommender.load(trained[0]["TIGER"])
    for history, part in [
        ([], "the history is empty"),
        ([["i1"], []], "history 2 is empty"),
        ("i1", "list of item tokens"),
        ([1, 2], "list of item tokens"),
        ([["i1"], "i2"], "list of item tokens"),
        ([["i1"], ["x"]], "history 2 has 1 items"),
    ]:
        with pytest.raises(TigerError, match=part):
            recommender.recommend(history)
    rows = pd.Series(["i3", "i9"], index=[7, 4])  # of a filtered table
    assert recommender.recommend(rows) == recommender.recommend(["i3", "i9"])


def test_one_long_history_refuses_no_others(trained):
    """It gets what is left."""
    recommender = Recommender.load(trained[0]["TIGER"])
    everything = [f"i{i}" for i in range(N_ITEMS)]
    for beam_size in (None, 12):
        lists = recommender.recommend([everything[5:], ["i1"], everything], exclude_history=True, beam_size=beam_size)
        assert {row["item"] for row in lists[0]} == set(everything[:5])
        assert list(map(len, lists)) == [5, 10, 0]


# --- the terminal ---

TERMINALS = [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


def in_terminal(terminal, *command):
    """A command's standard output, as bytes, in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key not in ("LC_ALL", "LANG", "PYTHONUTF8")}
    done = subprocess.run(
        [sys.executable, "-m", "recbole_tiger", *command], env={**environment, **terminal}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("terminal", TERMINALS, ids=["latin-1", "C"])
def test_titles_that_the_terminal_cannot_show(own, terminal):
    folder, settings = own
    settings = {**settings, "item_embeddings": str(folder / "embeddings.npz"), "epochs": 1, **QUIET}
    rows = [[f"红茶 {i} \N{TEACUP WITHOUT HANDLE}", "Acme"] for i in range(N_ITEMS)]
    with_rows(folder, ["title:token", "品牌:token"], rows)
    settings["text_fields"] = ["title", "品牌"]
    shown = in_terminal(terminal, "tokenize", "--dataset=tiny", "--output=ids.tsv", *arguments(settings))
    assert b"\\u7ea2\\u8336" in shown
    assert SemanticIDs.load("ids.tsv").items
    in_terminal(terminal, "run", "--model=TIGER", "--dataset=tiny", *arguments(settings))
    (checkpoint,) = Path(settings["checkpoint_dir"]).glob("*.pth")
    Path("histories.txt").write_text("i1\n")
    lines = in_terminal(terminal, "recommend", f"--checkpoint={checkpoint}", "--histories=histories.txt", "--k=2")
    (answer,) = [json.loads(line) for line in lines.decode("ascii").splitlines()]
    assert all(row["title"].startswith("红茶") for row in answer["recommendations"])


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_a_dataset_is_named_not_located(capsys, own, model):
    _, settings = own
    told = run(capsys, of_model(settings, model), model=model, dataset="./tiny")
    has(told, "dataset './tiny' has to be a name, not a path", "--data_path")


@pytest.mark.parametrize("written", ["茶", '"\\u8336"'], ids=["as it is", "escaped"])
def test_a_label_that_the_file_system_cannot_spell(settings, written):
    """Before the training, whose result could not be written."""
    command = [sys.executable, "-m", "recbole_tiger", "run", "--model=Pop", "--dataset=tiny", f"--label={written}"]
    command += [f"--data_path={settings['data_path']}"]
    done = subprocess.run(command, env={**os.environ, **TERMINALS[1]}, capture_output=True, check=False)
    assert done.returncode == 2, done.stderr.decode()
    assert b"PYTHONUTF8=1" in done.stderr
    assert b"Traceback" not in done.stderr and not Path("saved").exists()


def test_output_that_nobody_reads(trained):
    """As of ``leaderboard | head``."""
    files, _ = trained
    folder = files["TIGER"].parents[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "recbole_tiger", "leaderboard", f"--results_dir={folder / 'results'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


# --- results ---

SAMPLES = {int: 1, int | float: 0.5, str: "x", bool: True, dict: {}, list: [], str | None: None}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"schema": 1, "mod', ["cut short", "delete it and run again"]),
        ("", ["cut short"]),
        ("[]", ["lacks schema"]),
        ('{"schema": 1}', ["lacks seed"]),
        (json.dumps({**dict.fromkeys(FIELDS), "schema": 1}), ["wrong value of seed, epochs"]),
        (json.dumps({**{field: SAMPLES[kind] for field, kind in FIELDS.items()}, "schema": 2}), ["schema 2", "reads 1"]),
    ],
)
def test_damaged_result_file(capsys, trained, tmp_path, content, parts):
    files, settings = trained
    name = next(file.name for file in (files["TIGER"].parents[1] / "results").glob("tiny-TIGER-*.json"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).write_text(content)
    has(run(capsys, settings, "--resume"), name, *parts)


def test_results_dir_that_is_a_file(capsys, own, tmp_path):
    (tmp_path / "results").write_text("mine")
    has(run(capsys, own[1]), "results", "choose another folder")


# --- two runs at once ---


def _count(times):
    for _ in range(times):
        while True:
            with contextlib.suppress(TigerError), locked("counter.lock", "this"):
                Path("counter").write_text(str(int(Path("counter").read_text()) + 1))
                break


def test_a_lock_is_held_by_one():
    """Processes that take turns lose no count, although each removes the file of the lock."""
    Path("counter").write_text("0")
    counting = [multiprocessing.get_context("fork").Process(target=_count, args=(100,)) for _ in range(4)]
    for process in counting:
        process.start()
    for process in counting:
        process.join()
    assert Path("counter").read_text() == "400"
    assert not Path("counter.lock").exists()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_same_run_twice_at_once(settings, capsys, end):
    """The second names the first; one that was killed holds nothing."""
    settings = {**settings, **QUIET, "epochs": 200, "stopping_step": 200}
    call = ["run", "--model=TIGER", "--dataset=tiny", "--resume", *arguments(settings)]
    first = subprocess.Popen([sys.executable, "-m", "recbole_tiger", *call], stderr=subprocess.PIPE)
    saved = Path(settings["checkpoint_dir"])
    while not list(saved.glob("*/last.pth")):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    assert main(call) == 2
    message = has(sentence(capsys), "the same run of TIGER is running already", f"in process {first.pid} ", "wait until")
    (lock,) = saved.glob("*.lock")
    assert str(lock) in message
    assert list(saved.glob("*/last.pth"))  # its state is there
    first.send_signal(end)
    first.wait()
    assert first.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143}[end]
    assert lock.exists() == (end == signal.SIGKILL)
    with locked(lock, "this"):
        assert lock.read_text() == str(os.getpid())
    assert not lock.exists()
    if end == signal.SIGTERM:
        assert first.stderr.read().decode().splitlines()[-1] == "recbole-tiger: terminated"
        assert not list(Path().rglob(".*.pth*"))


# --- a disk without room ---


@contextlib.contextmanager
def limit(size):
    """Files cannot grow beyond ``size`` bytes; None: as they can."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def full_disk(name, size):
    """Files whose path, or whose folder's, contains ``name`` cannot grow beyond ``size`` bytes: the kernel refuses it."""
    renamed = files._write_then_rename

    @contextlib.contextmanager
    def limited(path, *args):
        with limit(size if name in str(path) else None), renamed(path, *args) as temporary:
            yield temporary

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_write_then_rename", limited)
        yield


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("embeddings-", 5000),
        ("quantized-", 300),
        ("/TIGER-", 20000),
        ("/TIGER-", 0),
        ("last.pth", 20000),
        ("results/", 1000),
        (".ranks.npz", 100),
    ],
)
def test_no_room(settings, capsys, name, size):
    if name == "embeddings-":
        settings["item_embeddings"] = None
    settings |= {"epochs": 1}
    if name == "last.pth":  # that of the best epoch is the same file as the best checkpoint and takes no room
        settings |= {"epochs": 2, "eval_step": 2}
    command = ["run", "--model=TIGER", "--dataset=tiny", *arguments({**settings, **QUIET})]
    with full_disk(name, size):
        assert main(command) == 2
    has(sentence(capsys), "cannot write ", name, "make room or choose another folder")

    written = files_under(".")
    kinds = sorted(re.sub(r"TIGER-[^/]*|(?<=quantized-)\w+", "*", file) for file in written)
    cached = ["cache/quantized-*.npz"]
    expected = {
        "embeddings-": [],
        "quantized-": [],
        "/TIGER-": cached,
        "last.pth": cached,
        "results/": [*cached, "saved/*", "saved/*/last.pth"],
    }
    assert kinds == expected["results/" if name == ".ranks.npz" else name]

    if name == "results/":  # nothing of the training is lost
        assert main([*command, "--resume"]) == 0
        (result,) = read_results("results")
        assert result["epochs"] == 1


@pytest.mark.parametrize(("name", "size"), [("/SASRec-", 20000), ("results/", 1000)])
def test_no_room_for_another_model(capsys, data_path, name, size):
    call = ["run", "--model=SASRec", "--dataset=tiny", "--epochs=1", f"--data_path={data_path}", "--state=ERROR"]
    with full_disk(name, size):
        assert main([*call, "--show_progress=False"]) == 2
    has(sentence(capsys), "cannot write ", name, "make room or choose another folder")
    assert [Path(file).parts[0] for file in files_under(".")] == ([] if name == "/SASRec-" else ["saved"])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (["leaderboard", "--output=mine.md"], "mine.md"),
        (["leaderboard", "--output=mine.tex", "--format=latex"], "mine.tex"),
        (["leaderboard", "--plots=pictures"], "-training.png"),
        (["leaderboard", "--plots=pictures"], "-parameters.png"),
        (["recommend", "--histories=histories.txt", "--output=mine.jsonl"], "mine.jsonl"),
        (["tokenize", "--dataset=tiny", "--output=mine.tsv"], "mine.tsv"),
    ],
    ids=str,
)
def test_no_room_for_what_a_command_makes(capsys, trained, call, name):
    found, settings = trained
    Path("histories.txt").write_text("i1,i2\n")
    more = {
        "leaderboard": [f"--results_dir={found['TIGER'].parents[1] / 'results'}"],
        "recommend": [f"--checkpoint={found['TIGER']}"],
        "tokenize": arguments({**settings, **QUIET}),
    }
    before = files_under(".")
    with full_disk(name, 20):
        assert main([*call, *more[call[0]]]) == 2
    lines = capsys.readouterr().err.splitlines()
    has(lines[-1], "recbole-tiger: error: cannot write ", name, "make room or choose another folder")
    left = {file for file in files_under(".") if file not in before}
    assert {Path(file).suffix for file in left} <= {".png"} and not any(name in file for file in left)


def test_no_room_for_the_log(settings, capsys, monkeypatch):
    """It is cut short, which is said once; the run ends as it would."""
    write = FileHandler.emit

    def emit(handler, record):
        with limit(300):
            write(handler, record)

    monkeypatch.setattr(FileHandler, "emit", emit)
    assert main(["run", "--model=TIGER", "--dataset=tiny", *arguments({**settings, "epochs": 1})]) == 0
    err = capsys.readouterr().err
    (log,) = Path("log").glob("TIGER/*.log")
    assert err.count(f"recbole-tiger: warning: the log {log.absolute()} is cut short: ") == 1
    assert "Traceback" not in err
    assert log.stat().st_size <= 300
    assert len(read_results("results")) == 1


# --- pre-split data ---


@pytest.fixture
def split(tmp_path, settings):
    """The dataset as tiny.train.inter, tiny.valid.inter and tiny.test.inter, and settings for it."""
    folder = write_dataset(tmp_path / "data")
    histories = read_sequences(folder)
    (folder / "tiny.inter").unlink()
    header = "user_id:token\titem_id_list:token_seq\titem_id:token"
    parts = {"train": [header], "valid": [header], "test": [header]}
    for user, items in histories.items():
        for end in range(1, len(items)):
            part = {len(items) - 1: "test", len(items) - 2: "valid"}.get(end, "train")
            parts[part].append(f"{user}\t{' '.join(items[:end])}\t{items[end]}")
    for part, rows in parts.items():
        (folder / f"tiny.{part}.inter").write_text("\n".join(rows) + "\n")
    return folder, {
        **settings,
        "data_path": str(tmp_path / "data"),
        "benchmark_filename": ["train", "valid", "test"],
        "alias_of_item_id": ["item_id_list"],
        "epochs": 1,
    }


def test_split_data(split):
    _, settings = split
    assert main(["run", "--model=TIGER", "--dataset=tiny", *arguments(settings)]) == 0
    (result,) = read_results("results")
    assert result["epochs"] == 1
    assert result["semantic_ids"]["items"] == 60
    assert 0 < result["test_result"]["recall@20"] <= 1


def test_split_data_is_that_of_the_whole(split, settings):
    """The same rows as RecBole's leave one out makes, whichever way they came."""
    _, data, _, _ = built(split[1])
    _, whole, _, _ = built(settings)
    for ours, theirs in zip(data, whole, strict=True):
        rows = [
            {
                (user, tuple(dataset.id2token("item_id", history[:length])), target)
                for user, history, length, target in zip(
                    dataset.id2token("user_id", dataset.inter_feat["user_id"]),
                    dataset.inter_feat["item_id_list"].tolist(),
                    dataset.inter_feat["item_length"].tolist(),
                    dataset.id2token("item_id", dataset.inter_feat["item_id"]),
                    strict=True,
                )
            }
            for dataset in (ours._dataset, theirs._dataset)
        ]
        assert rows[0] == rows[1]


def test_split_data_with_an_empty_history(capsys, split):
    folder, settings = split
    with open(folder / "tiny.valid.inter", "a") as file:
        file.write("u1\t\ti3\n")
    has(run(capsys, {**settings, **NO_ENCODER}), "1 rows", "empty history", "item_id_list")


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_split_data_without_the_alias(capsys, split, model):
    _, settings = split
    del settings["alias_of_item_id"]
    settings = {**of_model(settings, model), "benchmark_filename": settings["benchmark_filename"]}
    message = run(capsys, {**settings, **(NO_ENCODER if model == "TIGER" else {})}, model=model)
    has(message, "item_id_list", "--alias_of_item_id=[item_id_list]")


def test_split_data_with_histories_that_are_too_long(capsys, split):
    settings = {**split[1], "MAX_ITEM_LIST_LENGTH": 4}
    names = ("data_path", "benchmark_filename", "alias_of_item_id", "epochs", "MAX_ITEM_LIST_LENGTH")
    own = {name: settings[name] for name in names}
    assert main(["run", "--model=SASRec", "--dataset=tiny", *arguments({**own, **QUIET})]) == 2
    has(sentence(capsys), "histories of up to", "MAX_ITEM_LIST_LENGTH is 4", "raise it")
    assert main(["run", "--model=TIGER", "--dataset=tiny", "--html=page.html", *arguments({**settings, **QUIET})]) == 0
    (result,) = read_results("results")
    assert target_occurrences(result, settings["data_path"]) is not None


def test_split_data_with_histories_longer_than_what_is_read(split):
    """Their last items are read, and every row of the training file is a target."""
    folder, settings = split
    _, (train_data, _, test_data), model, _ = built({**settings, "MAX_ITEM_LIST_LENGTH": 4})
    dataset = test_data._dataset
    rows = {
        part: [row.split("\t") for row in (folder / f"tiny.{part}.inter").read_text().splitlines()[1:]]
        for part in ("train", "test")
    }
    histories = {user: history.split() for user, history, _ in rows["test"]}
    found = model.histories_of(dataset.inter_feat.interaction)
    for user, history in zip(dataset.inter_feat["user_id"], found, strict=True):
        expected = histories[dataset.id2token("user_id", int(user))][-4:]
        assert [dataset.id2token("item_id", int(item)) for item in history if item] == expected
    windows = training_windows(train_data._dataset, False)
    assert int(windows.n_targets.sum()) == len(rows["train"])


def test_occurrences_of_split_data(split):
    """With histories and lists of other lengths than the default ones."""
    folder, settings = split
    names = ("data_path", "benchmark_filename", "alias_of_item_id", "epochs")
    own = {**{name: settings[name] for name in names}, "MAX_ITEM_LIST_LENGTH": 50, "topk": [5, 60], "valid_metric": "NDCG@5"}
    assert main(["run", "--model=GRU4Rec", "--dataset=tiny", "--html=page.html", *arguments({**own, **QUIET})]) == 0
    (result,) = read_results("results")
    rows = {
        part: [row.split("\t") for row in (folder / f"tiny.{part}.inter").read_text().splitlines()[1:]]
        for part in ("train", "test")
    }
    counts = Counter(item for _, _, item in rows["train"])
    users, found = target_occurrences(result, settings["data_path"])
    assert dict(zip(users.tolist(), found.tolist(), strict=True)) == {user: counts[item] for user, _, item in rows["test"]}


def test_split_data_without_histories(capsys, split):
    folder, settings = split
    for part in ("train", "valid", "test"):
        file = folder / f"tiny.{part}.inter"
        file.write_text(re.sub(r"^(.*)\t(.*)\t(.*)$", r"\1\t\3", file.read_text(), flags=re.MULTILINE))
    message = run(capsys, {**settings, **NO_ENCODER})
    has(message, folder / "tiny.train.inter", "no column item_id_list", "user_id, item_id")


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda items: f"{items} 0 0", ["1 values of item_id_list", "first 0;", "without padding"]),
        (lambda items: items.replace(" ", ","), ["first i", "with ' ' between them (--seq_separator=...)"]),
        (lambda items: f"{items} x1 x2", ["2 values of item_id_list", "first x1, x2", "are no items of"]),
    ],
    ids=["padding", "commas", "unknown"],
)
def test_split_data_with_histories_of_other_than_items(capsys, split, model, change, parts):
    folder, settings = split
    file = folder / "tiny.test.inter"
    rows = [line.split("\t") for line in file.read_text().splitlines()]
    rows[1:] = [[user, change(items), item] for user, items, item in rows[1:]]
    file.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    names = ("data_path", "benchmark_filename", "alias_of_item_id", "epochs")
    own = {**settings, **NO_ENCODER} if model == "TIGER" else {name: settings[name] for name in names}
    has(run(capsys, own, model=model), file, *parts, folder / "tiny.item")


def test_split_data_with_a_file_missing(capsys, split):
    folder, settings = split
    (folder / "tiny.valid.inter").unlink()
    has(run(capsys, {**settings, **NO_ENCODER}), folder / "tiny.valid.inter", "does not exist")


@pytest.mark.parametrize("model", ["TIGER", "SASRec"])
def test_split_data_without_a_folder(capsys, split, model):
    """No other data are downloaded under the name."""
    own = {"data_path": "nowhere", "benchmark_filename": split[1]["benchmark_filename"]}
    has(run(capsys, own, model=model, dataset="amazon-beauty"), "amazon-beauty has no pre-split files", "--data_path")
    assert not Path("nowhere").exists()


def test_split_data_with_unknown_items(capsys, split):
    folder, settings = split
    file = folder / "tiny.test.inter"
    first, second, *rest = file.read_text().splitlines()
    file.write_text("\n".join([first, re.sub(r"\w+$", "x1", second), *rest]) + "\n")
    has(run(capsys, {**settings, **NO_ENCODER}), file, "x1", folder / "tiny.item", "add their rows")

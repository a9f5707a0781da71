"""The commands that list what there is."""

import pytest
import yaml

from recbole_tiger.cli import main
from recbole_tiger.model import MODELS
from recbole_tiger.settings.config import make_config
from recbole_tiger.settings.properties import property_file, recbole_models, recipes
from tests.test_readme import ROOT


def listed(capsys, *command):
    """Lines of a command by their first word."""
    assert main(list(command)) == 0
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}


def test_models(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[1]: line.split(maxsplit=2)[2] for line in lines if line.startswith(("model ", "recipe "))}
    assert set(told) == {*MODELS, *recipes()}
    assert told["TIGER-lsh"] == "An ablation of the paper: hashes of the embeddings as semantic IDs."
    assert all(text.endswith(".") for text in told.values())
    assert any("GRU4Rec, " in line for line in lines)


def test_datasets(capsys):
    lines = listed(capsys, "datasets")
    assert lines["amazon-beauty"].endswith("22,363 users, 12,101 items, 198,502 interactions.")
    assert "RecBole's sample dataset." in lines["ml-100k"]


def test_settings_of_all(capsys):
    assert main(["settings"]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0] for line in text.splitlines() if line.strip()}
    for file in ("catalogue", "protocol", "model/TIGER", "model/VQRec"):
        defaults = yaml.safe_load((ROOT / "properties" / f"{file}.yaml").read_text())
        assert set(defaults) <= lines
    assert "Levels, without the collision level" in text  # of all models
    assert "Number of digits; that of opq has to divide the width" in text  # of VQRec, whose default is another


def test_settings_of_a_recipe_have_its_values(capsys):
    assert listed(capsys, "settings", "TIGER-rq-kmeans")["quantizer"].split()[1] == '"rq_kmeans"'
    assert listed(capsys, "settings", "TIGER")["quantizer"].split()[1] == '"rq_vae"'


@pytest.mark.parametrize("recipe", recipes())
def test_settings_of_a_recipe_are_those_of_its_runs(recipe, data_path):
    given = property_file("recipe", recipe)
    config = make_config(recipe, "tiny", {"data_path": str(data_path)})
    assert {key: config[key] for key in given} == given
    assert config["label"] == recipe


def test_settings_of_every_model_of_recbole(capsys):
    for model in recbole_models():
        if model not in ("XGBoost", "LightGBM"):
            assert "topk" in listed(capsys, "settings", model)


def test_settings_of_a_model_of_recbole(capsys):
    lines = listed(capsys, "settings", "SASRec")
    assert lines["n_layers"].split()[1] == "2"
    assert "MAX_ITEM_LIST_LENGTH" in lines
    assert "codebook_size" not in lines


@pytest.mark.parametrize("name", ["TIGR", "SASrec"])
def test_settings_of_an_unknown_model(capsys, name):
    assert main(["settings", name]) == 2
    assert "did you mean" in capsys.readouterr().err

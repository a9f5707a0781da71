"""The identity of a run: its settings, its data, and the other files that it reads."""

import hashlib
import json
from pathlib import Path

from recbole_tiger.catalogue.encoder import is_npy, own_encoder_hash, tokens_file
from recbole_tiger.catalogue.item_text import interaction_files, item_file
from recbole_tiger.catalogue.quantizers import QUANTIZERS
from recbole_tiger.errors import TigerError
from recbole_tiger.files import content_hash
from recbole_tiger.model import MODELS
from recbole_tiger.settings.properties import ADDED_LATER, NOT_IN_RUN_KEY, settings_of_other_quantizers


def data_hash(config):
    """Hash of the dataset's interactions and items."""
    digest = hashlib.sha256()
    for file in [*interaction_files(config), item_file(config)]:
        if file.is_file():
            digest.update(content_hash(file))
    return digest.hexdigest()[:16]


def run_settings(config):
    """The settings that affect the result of a run, as JSON values."""
    left_out = NOT_IN_RUN_KEY | (settings_of_other_quantizers(config["quantizer"]) if config["model"] in MODELS else set())
    settings = {key: value for key, value in config.final_config_dict.items() if key not in left_out}
    settings = {key: value for key, value in settings.items() if key not in ADDED_LATER or value != ADDED_LATER[key]}
    return json.loads(json.dumps(settings, default=str, sort_keys=True))


def extra_input_hashes(config):
    """Hashes of the other inputs.

    These are other files of the dataset (of users or a knowledge graph), a pre-trained model, and for a model of MODELS
    embeddings, semantic IDs, an encoder, and for a model or quantizer from outside this package all plugin files.
    """
    kinds = [kind for kind in config["load_col"] or [] if kind not in ("inter", "item")]
    files, encoder = [config["pre_model_path"]], None
    if config["model"] in MODELS:
        embeddings = config["item_embeddings"]
        tokens = [tokens_file(embeddings)] if embeddings and is_npy(embeddings) else []
        plugins = MODELS.plugin_files(config["model"]) or QUANTIZERS.plugin_files(config["quantizer"])
        files = [embeddings, config["semantic_ids"], *files, *tokens, *plugins]
        encoder = own_encoder_hash(config["text_encoder"])
    files += [Path(config["data_path"]) / f"{config['dataset']}.{kind}" for kind in kinds]
    found = [content_hash(file).hex() for file in files if file and Path(file).is_file()]
    return found if encoder is None else [*found, encoder]


def _input_hashes(config):
    return {"data_hash": data_hash(config), "inputs": extra_input_hashes(config)}


def run_inputs(config):
    """Everything that affects the result of a run, as in result files: settings and hashes of files.

    The files are hashed once per config, so that all outputs of a run are named after the files at its start.
    """
    if config["input_hashes"] is None:
        config["input_hashes"] = _input_hashes(config)
    return {"settings": run_settings(config), **config["input_hashes"]}


def check_unchanged(config):
    """Refuse files that have changed since :func:`run_inputs` hashed them.

    Raises:
        TigerError: a file has changed.
    """
    if _input_hashes(config) != config["input_hashes"]:
        raise TigerError(
            f"files of {config['dataset']} in {config['data_path']}, or of your embeddings, semantic IDs, encoder or "
            f"plugins, have changed since this run began: run it again"
        )


def run_key(config):
    """Hash of the settings and the inputs of a run."""
    inputs = run_inputs(config)
    text = json.dumps([inputs["settings"], inputs["data_hash"], *inputs["inputs"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]

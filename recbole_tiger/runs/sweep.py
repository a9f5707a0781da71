"""Sweeps without running them: the search space, its trials, their records, and the tables."""

import csv
import hashlib
import importlib.util
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ray import tune
from ray.tune.search.variant_generator import generate_variants
from tabulate import tabulate

from recbole_tiger.catalogue.quantizers import quantizer_settings, unread_settings
from recbole_tiger.errors import TigerError
from recbole_tiger.files import whole_file
from recbole_tiger.model import MODELS
from recbole_tiger.report.results import write_result
from recbole_tiger.settings.arguments import read_config_files
from recbole_tiger.settings.config import make_config
from recbole_tiger.settings.identity import run_key, run_settings
from recbole_tiger.settings.properties import (
    NOT_IN_RUN_KEY,
    nearest,
    property_file,
    property_files,
    protocol,
    recbole_arguments,
    recbole_models,
)

# Distributions of Ray Tune and their number of arguments; an upper bound of whole numbers is exclusive.
DISTRIBUTIONS = {"uniform": 2, "loguniform": 2, "quniform": 3, "randint": 2, "lograndint": 2, "choice": None}
# Trials of an adaptive search that are drawn before any score is known.
DRAWN_FIRST = 5
# Final states of a trial; a trial recorded as "running" still runs or was killed.
ENDED = ("completed", "stopped", "failed")


def shipped():
    """Names of the sweeps that come with the package."""
    return property_files("sweep")


def read_space(sweep, config):
    """Read and check the search space of a sweep.

    Args:
        sweep: a name of :func:`shipped` or a YAML file, where ``key: [a, b]`` is a grid and ``key: {uniform: [0, 1]}`` a
            distribution.
        config: config of a run with the settings that all trials share.

    Returns:
        dict: setting -> list of values, or a dict of one distribution and the list of its arguments.

    Raises:
        TigerError: the space is invalid; the message names the setting and its allowed values.
    """
    if sweep in shipped():
        if sweep in [*recbole_models(), *MODELS] and sweep != config["model"]:
            raise TigerError(f"sweep {sweep} varies settings of {sweep}, not of {config['model']}: give --model={sweep}")
        space = property_file("sweep", sweep)
    elif sweep.endswith((".yaml", ".yml")):
        space = read_config_files([sweep])
    else:
        raise TigerError(
            f"unknown sweep {sweep!r}{nearest(sweep, shipped())}; give a .yaml file or one of {', '.join(shipped())}"
        )
    if not space:
        raise TigerError(f"sweep {sweep} holds no setting to vary: give lines like codebook_size: [64, 128]")
    of_recbole = recbole_arguments()
    # The seed draws the users of validation, too.
    fixed = {*of_recbole["evaluation_arguments"], *of_recbole["dataset_arguments"], *protocol(), "seed"}
    for key, values in space.items():
        where = f"sweep {sweep}, {key}"
        if key not in config.final_config_dict:
            own = f"; try --sweep={config['model']}" if config["model"] in shipped() else ""
            raise TigerError(f"{where}: model {config['label']} has no such setting{own}")
        if key in fixed or key in NOT_IN_RUN_KEY:
            raise TigerError(f"{where}: all trials have to share it to be comparable; give it as --{key}=...")
        _check_values(where, values)
    if config["model"] in MODELS and "quantizer" not in space and (unread := unread_settings(config, space)):
        raise TigerError(
            f"sweep {sweep} varies {', '.join(unread)}, but the quantizer {config['quantizer']} does not read it, so trials "
            f"would repeat each other: choose another quantizer, or a sweep without it"
        )
    return space


def _check_values(where, values):
    if isinstance(values, dict):
        if len(values) != 1 or not set(values) <= set(DISTRIBUTIONS):
            raise TigerError(f"{where}: {values} is not a distribution; choose one of {', '.join(DISTRIBUTIONS)}")
        ((kind, arguments),) = values.items()
        if kind != "choice":
            count = DISTRIBUTIONS[kind]
            if (
                not isinstance(arguments, list)
                or len(arguments) != count
                or not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in arguments)
            ):
                raise TigerError(f"{where}: {kind} takes a list of {count} numbers, not {arguments!r}")
            low, high = arguments[:2]
            if kind in ("randint", "lograndint") and not all(isinstance(x, int) for x in arguments):
                raise TigerError(f"{where}: {kind} takes whole numbers, not {arguments!r}")
            if not low < high or (kind.startswith("log") and low <= 0) or (kind == "quniform" and arguments[2] <= 0):
                raise TigerError(f"{where}: {kind} from {low} to {high} is empty or has a bound or step that is too low")
            try:
                getattr(tune, kind)(*arguments)
            except ValueError as error:  # bounds that are no multiples of the step of quniform
                raise TigerError(f"{where}: {error}") from error
            return
        values = arguments
    if not isinstance(values, list) or not values:
        raise TigerError(f"{where}: {values!r} is not a list of values; give at least one, as [64, 128]")
    written = [json.dumps(value, sort_keys=True, default=str) for value in values]
    if len(set(written)) < len(written):
        raise TigerError(f"{where}: a value occurs twice in {values}")


class Space:
    """A checked search space in Ray Tune's form. Values of grids and choices may be lists, so their indices are searched.

    Attributes:
        variants: dict of setting to grid or distribution.
        grids: the settings that are a grid; random: whether any setting is a distribution.
    """

    def __init__(self, space):
        self.variants, self._choices = {}, {}
        for key, values in space.items():
            kind, arguments = ("grid", values) if isinstance(values, list) else next(iter(values.items()))
            if kind in ("grid", "choice"):
                self._choices[key] = arguments
                places = list(range(len(arguments)))
                self.variants[key] = tune.grid_search(places) if kind == "grid" else tune.choice(places)
            else:
                self.variants[key] = getattr(tune, kind)(*arguments)
        self.grids = [key for key, values in space.items() if isinstance(values, list)]
        self.random = len(self.grids) < len(space)

    def params(self, point):
        """The settings at a point of the space."""
        values = {key: value.item() if hasattr(value, "item") else value for key, value in point.items()}
        return {key: self._choices[key][value] if key in self._choices else value for key, value in values.items()}

    def point(self, params):
        """The point of some settings, the inverse of :meth:`params`."""
        return {key: self._choices[key].index(value) if key in self._choices else value for key, value in params.items()}


def draw(space, num_samples, seed):
    """Draw the settings of every trial with Ray Tune; the same space and seed give the same trials.

    Returns:
        list of dicts: the points of the grid, and if there are distributions ``num_samples`` draws for each point.
    """
    state = np.random.RandomState(seed)
    space, trials = Space(space), []
    for _ in range(num_samples if space.random else 1):
        for _, spec in generate_variants({"config": space.variants}, random_state=state):
            trial = space.params(spec["config"])
            if trial not in trials:
                trials.append(trial)
    return trials


def _read_record(file):
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TigerError(f"{file} is cut short or not JSON ({error}); delete it to run its trial again") from error
    whole = isinstance(record, dict) and {"number", "params", "status"} <= record.keys()
    if not whole or (record["status"] == "completed" and not isinstance(record.get("result"), dict)):
        raise TigerError(f"{file} is no record of a trial; delete it to run its trial again")
    return record


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: its place in the sweep, from 1.
        key: hash of its settings and data, as for any run.
        params: the settings that the sweep varies.
        settings: all settings of the trial, for ``make_config``.
        values: the settings of the run in full, with defaults.
    """

    number: int
    key: str
    params: dict
    settings: dict
    values: dict

    def __str__(self):
        return ", ".join(f"{key} {_format_value(value)}" for key, value in self.params.items())


@dataclass(frozen=True)
class Sweep:
    """Trials to compare; their records are ``<folder>/trials/<key>.json``.

    Attributes:
        model: a model or recipe; dataset: name.
        trials: list of :class:`Trial`: all trials, or in an adaptive search those chosen so far.
        size: number of trials in the end.
        space: the space of an adaptive search, as :func:`read_space` returns it; None if all trials are drawn before the
            first one runs.
        settings: the settings that all trials share, for ``make_config``; checkpoints: folder of the trials' checkpoints.
        seed: seed of all trials and of the search.
        metric: name of the validation metric; bigger: whether higher is better.
    """

    model: str
    dataset: str
    folder: Path
    trials: list
    size: int
    space: dict | None
    settings: dict
    checkpoints: Path
    seed: int
    metric: str
    bigger: bool

    def add(self, params):
        """Add a trial with these settings, or return the trial that has them already.

        Raises:
            TigerError: the settings cannot work.
        """
        settings = {**self.settings, **params}
        try:
            own = make_config(self.model, self.dataset, settings)
        except TigerError as error:
            raise TigerError(f"trial {params}: {error}") from error
        key = run_key(own)
        known = [trial for trial in self.trials if trial.key == key]
        if known:
            return known[0]
        settings["checkpoint_dir"] = str(self.checkpoints / key)
        self.trials.append(Trial(len(self.trials) + 1, key, params, settings, run_settings(own)))
        return self.trials[-1]

    def add_recorded(self):
        """Add the trials recorded by an earlier session of the sweep, in their order."""
        records = [_read_record(file) for file in self._records.glob("*.json")]
        for record in sorted(records, key=lambda record: record["number"]):
            if record["number"] <= self.size:
                trial = self.add(record["params"])
                # If the sweep was killed before a drawn trial was recorded, the trials after it move up.
                if trial.number != record["number"]:
                    self.write(trial)

    @property
    def epochs(self):
        """The largest number of epochs of a trial."""
        return max(trial.values["epochs"] for trial in self.trials)

    def record(self, trial):
        """The record of a trial, or None if there is none yet.

        Raises:
            TigerError: the file is cut short or not JSON.
        """
        file = self._file(trial)
        return _read_record(file) if file.is_file() else None

    def write(self, trial, **fields):
        """Update the record of a trial."""
        own = {"number": trial.number, "key": trial.key, "params": trial.params}
        write_result({**(self.record(trial) or {}), **own, **fields}, self._file(trial))

    @property
    def _records(self):
        return self.folder / "trials"

    def _file(self, trial):
        return self._records / f"{trial.key}.json"

    def left(self):
        """How many trials have not ended."""
        return self.size - sum(map(self.ended, self.trials))

    def ended(self, trial):
        """Whether a trial has ended."""
        return (self.record(trial) or {}).get("status") in ENDED

    def winner(self):
        """The completed trial with the best validation score, the earliest if several are equal; None if none completed."""
        scores = {}
        for trial in self.trials:
            record = self.record(trial)
            if record["status"] == "completed":
                scores[trial.number] = record["result"]["best_valid_score"] * (1 if self.bigger else -1)
        return self.trials[max(scores, key=scores.get) - 1] if scores else None

    def rows(self):
        """The rows of the tables, one dict per trial."""
        winner = self.winner()
        return [{**_row(trial, self.record(trial)), "winner": trial is winner} for trial in self.trials]


def plan(model, dataset, user_settings, config, *, sweep, search, num_samples, scheduler, grace_period, results_dir):
    """Make the sweep of a command.

    Args:
        model: a model or a recipe. user_settings: those that all trials share.
        config: from ``experiment.prepare`` with these settings.
        sweep: name of a file in ``properties/sweep``, or the path of another.
        search: "random", or "hyperopt" to choose each trial by the scores of earlier trials.
        num_samples: draws for each point of the grid; with "hyperopt" the number of trials.
        scheduler: "asha" or "none". grace_period: epochs before ASHA stops a trial, or None.
        results_dir: the folder in which the sweep's is made.

    Raises:
        TigerError: the space or one of its trials cannot work.
    """
    space = read_space(sweep, config)
    both = sorted(set(space) & set(user_settings))
    if both:
        raise TigerError(f"sweep {sweep} varies {', '.join(both)}, but the settings fix it: remove it from one of them")
    if config["semantic_ids"] and set(space) & {"quantizer", *quantizer_settings(config)}:
        raise TigerError(
            f"sweep {sweep} varies how semantic IDs are made, but semantic_ids gives them: remove one of the two"
        )
    if search == "hyperopt" and importlib.util.find_spec("hyperopt") is None:
        raise TigerError("--search=hyperopt needs the package hyperopt: install recbole-tiger with its extra `hyperopt`")
    grids = Space(space).grids
    if search == "hyperopt" and grids:
        raise TigerError(
            f"sweep {sweep}: {', '.join(grids)} is a grid, and --search=hyperopt would not try all of its points; "
            f"write it as {{choice: [...]}}, or give --search=random"
        )
    if search == "hyperopt" and "epochs" in space:
        raise TigerError(f"sweep {sweep} varies epochs, which --search=hyperopt cannot do: give --search=random")
    # Another scheduler stops trials elsewhere, so it makes another sweep; more samples extend the same sweep.
    identity = [run_key(config), space, search, scheduler, grace_period]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:10]
    name = f"{config['dataset']}-{config['label']}-{Path(sweep).stem}-{config['seed']}-{digest}"
    shared = {**user_settings, "load_col": config["load_col"], "resume": True}
    if "," in dataset:
        shared["data_path"] = str(Path(config["data_path"]).parent)  # of the mixture
    params = draw(space, num_samples, config["seed"])
    adaptive = search == "hyperopt"
    made = Sweep(
        model=model,
        dataset=dataset,
        folder=Path(results_dir) / name,
        trials=[],
        size=num_samples if adaptive else len(params),
        space=space if adaptive else None,
        settings=shared,
        checkpoints=Path(config["checkpoint_dir"]) / name,
        seed=config["seed"],
        metric=config["valid_metric"].lower(),
        bigger=config["valid_metric_bigger"],
    )
    try:
        for chosen in params[:DRAWN_FIRST] if adaptive else params:
            made.add(chosen)
        if adaptive:
            made.add_recorded()
        else:
            made = replace(made, size=len(made.trials))  # different settings may make the same run
    except TigerError as error:
        raise TigerError(f"sweep {sweep}, {error}") from error
    if scheduler == "none" and grace_period is not None:
        raise TigerError("grace_period is for --scheduler=asha, which stops trials: leave it out")
    if grace_period is not None and not 1 <= grace_period <= made.epochs:
        raise TigerError(f"grace_period has to be from 1 to the {made.epochs} epochs, not {grace_period}")
    return made


def _format_value(value):
    if isinstance(value, list):
        return "/".join(map(_format_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(trial, record):
    result = record.get("result") or {}
    row = {"trial": trial.number, "key": trial.key, "status": record["status"], "reason": record.get("reason")}
    if trial.values["model"] in MODELS and not trial.values["semantic_ids"]:
        read = quantizer_settings(trial.values)
        row.update({key: read[key] for key in ("codebook_size", "codebook_depth") if key in read})
    row.update(trial.params)
    row.update(result.get("semantic_ids", {}))
    row.update(result.get("best_valid_result", {}))
    if result:
        evaluation = sum(epoch.get("eval_seconds", 0) for epoch in result["epoch_log"])
        row["epochs_run" if "epochs" in trial.params else "epochs"] = result["epochs"]
        row["best_epoch"] = result["best_epoch"]
        row["train_seconds"] = result["train_seconds"]
        row["seconds"] = round(result["prepare_seconds"] + result["train_seconds"] + evaluation, 1)
        row["parameters"] = result["parameters"]
    row["node"] = record.get("node")
    return row


def write_tables(sweep):
    """Write ``trials.csv`` and ``trials.json`` in the folder of the sweep; the CSV joins lists with "/"."""
    rows = sweep.rows()
    write_result(rows, sweep.folder / "trials.json")
    flat = [
        {key: "/".join(map(str, value)) if isinstance(value, list) else value for key, value in row.items()} for row in rows
    ]
    with whole_file(sweep.folder / "trials.csv") as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)))
        writer.writeheader()
        writer.writerows(flat)


def table(sweep):
    """The table of the trials as text, best first; a * marks the winner."""
    sign = -1 if sweep.bigger else 1
    rows = sorted(sweep.rows(), key=lambda row: sign * row[sweep.metric] if sweep.metric in row else np.inf)
    _, at, k = sweep.metric.partition("@")
    scores = {key: key for row in rows for key in row if key == sweep.metric or (at and key.endswith(at + k))}
    titles = {"codebook_size": "size", "codebook_depth": "depth"}
    titles.update({key: key for key in sweep.trials[0].params if key not in titles})
    titles.update(distinct_ids="distinct IDs", collision_rate="collisions", largest_group="largest group")
    titles.update(used_codes="used codes", perplexity="perplexity", **scores)
    titles.update(
        best_epoch="best epoch",
        epochs="epochs",
        epochs_run="epochs run",
        parameters="parameters",
        seconds="seconds",
        status="",
    )
    columns = [key for key in titles if any(row.get(key) is not None for row in rows)]

    def cell(row, key):
        if row.get(key) is None:
            return ""
        return (
            f"{row[key]:.4f}"
            if key in scores
            else _format_value(row[key]) + (" *" if key == "status" and row["winner"] else "")
        )

    text = tabulate(
        [[cell(row, key) for key in columns] for row in rows],
        [titles[key] for key in columns],
        tablefmt="github",
        disable_numparse=True,
        stralign="right",
    )
    failed = [f"failed: {sweep.trials[row['trial'] - 1]}: {row['reason']}" for row in rows if row["status"] == "failed"]
    return "\n".join([text, *([""] if failed else []), *failed])

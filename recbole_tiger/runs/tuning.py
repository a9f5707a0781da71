"""Run the trials of a sweep with Ray Tune; only the winner is tested."""

import contextlib
import copy
import logging
import os
import platform
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from types import SimpleNamespace

import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune import RunConfig, TuneError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher
from recbole.data.dataset import SequentialDataset
from tqdm import tqdm

from recbole_tiger.catalogue.catalogue import CollapseError, check_sizes, item_embeddings
from recbole_tiger.catalogue.item_text import text_of_items
from recbole_tiger.catalogue.quantizers import make_quantizer
from recbole_tiger.errors import TigerError
from recbole_tiger.files import check_writable, locked, make_folder
from recbole_tiger.model import MODELS
from recbole_tiger.registry import IMPORTED_FILES, import_file
from recbole_tiger.report.plots import codebook_heat_map, collision_scatter
from recbole_tiger.report.results import read_result
from recbole_tiger.runs import experiment
from recbole_tiger.runs.sweep import DRAWN_FIRST, ENDED, Space, write_tables
from recbole_tiger.settings.checks import SEEDS
from recbole_tiger.settings.config import make_config
from recbole_tiger.settings.identity import run_key
from recbole_tiger.training.memory import ONE_HEAP

# ASHA keeps one in REDUCTION of the trials that reach a rung; the next rung has REDUCTION times the epochs.
REDUCTION = 3
# Suggestions to request from HyperOpt until one is a new trial; a small space repeats its points.
SUGGESTIONS = 100

# On a busy machine Ray's processes need longer to connect than the default timeouts of 10 and 30 seconds, after which a
# process or a node ends without a message.
RAY_TIMEOUTS = {"RAY_raylet_client_num_connect_attempts": "120", "RAY_agent_register_timeout_ms": "120000"}


def check_address(address):
    """Refuse the address of a Ray cluster that does not answer; Ray itself would try for minutes.

    Raises:
        TigerError: no connection.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto"
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise TigerError(
            f"no Ray cluster at {address}: {error.strerror or error}; start one by `ray start --head`"
        ) from error


def check_trials(sweep):
    """Refuse a sweep before its first trial if its data or a trial's settings cannot work.

    The data that trials share, the embeddings in ``cache_dir``, and the codes of one trial are made here. Quantizing is
    slow, so the other trials make their own codes: a trial whose codebooks collapse fails alone, unless the codebooks of all
    trials collapse. Models without codes are made with the settings of every trial.

    Raises:
        TigerError: the data cannot be made, a trial cannot work, or the codebooks of every trial collapse.
    """
    trials = [trial for trial in sweep.trials if not sweep.ended(trial)] or sweep.trials
    configs = [make_config(sweep.model, sweep.dataset, trial.settings) for trial in trials]
    if configs[0]["model"] in MODELS:
        _embed(trials, configs)
        _make_codes(trials, configs)
        return
    train_data, *_ = experiment.load(copy.deepcopy(configs[0]))
    for trial, config in zip(trials, configs, strict=True):
        with _name_trial_in_errors(trial):
            experiment.make_model(copy.deepcopy(config), train_data)  # some models write into their settings


@contextlib.contextmanager
def _name_trial_in_errors(trial):
    """Name the trial in a TigerError."""
    try:
        yield
    except TigerError as error:
        raise TigerError(f"trial {trial.params}: {error}") from error


def _embed(trials, configs):
    """Refuse trials that do not fit the catalogue, then make the embeddings of the others."""
    model = MODELS[configs[0]["model"]]
    with experiment.recbole_errors_as_sentences(configs[0]):
        dataset = SequentialDataset(configs[0])
    items = dataset.field2id_token[dataset.iid_field][1:].tolist()
    for trial, config in zip(trials, configs, strict=True):
        with _name_trial_in_errors(trial):
            check_sizes(config, len(items))
            model.check_sizes(config, len(items))
    widths = {}  # of the embeddings, by the settings that make them
    for trial, config in zip(trials, configs, strict=True):
        if not model.needs_embeddings(config):
            continue
        made_by = *config["text_fields"], config["text_encoder"], config["item_embeddings"]
        with _name_trial_in_errors(trial):
            if made_by not in widths:
                texts, *_ = text_of_items(config, items, model.needs_text(config))
                widths[made_by] = item_embeddings(config, items, texts).shape[1]
            if not config["semantic_ids"]:
                make_quantizer(config).check_width(widths[made_by])


def _make_codes(trials, configs):
    """Make the data with the codes of the first trial whose codebooks do not collapse."""
    first = None
    for trial, config in zip(trials, configs, strict=True):
        try:
            experiment.load(config)
            return
        except CollapseError as error:
            first = first or (trial, error)
    trial, error = first
    raise TigerError(f"the codebooks of every trial collapse, for example those of trial {trial.params}: {error}") from error


def run_trial(chosen, sweep, folder, threads, plugins):
    """Run one trial in a Ray worker: train, report every evaluation, and write the trial's record.

    Args:
        chosen: dict with the ``trial``.
        folder: the working directory of the command, to which relative paths in the settings refer.
        threads: threads of PyTorch; more threads than the cores of the trial slow all trials down.
        plugins: files that register the user's models and quantizers.
    """
    trial = chosen["trial"]
    os.chdir(folder)
    sweep.write(trial, status="running", reason=None, node=_node())
    reported = 0

    def after_epoch(result):
        """Report the evaluations since the last call; a resumed trial also reports its earlier ones."""
        nonlocal reported
        sweep.write(trial, result=result)
        log = result["epoch_log"]
        for epoch in range(reported, len(log)):
            # The last epoch is reported after the record is written, because ASHA ends the trial there.
            if "valid_score" in log[epoch] and epoch + 1 < trial.values["epochs"]:
                tune.report({"epoch": epoch + 1, sweep.metric: log[epoch]["valid_score"]})
        reported = len(log)

    try:
        for file in plugins:
            import_file(file)
        torch.set_num_threads(threads)
        gpus = ",".join(map(str, ray.get_gpu_ids()))
        config = make_config(sweep.model, sweep.dataset, {**trial.settings, "gpu_id": gpus, "show_progress": False})
        if run_key(config) != trial.key:
            raise TigerError(f"the files of {sweep.dataset} have changed since the sweep began: start it again")
        experiment.start_logging(config)
        result, trainer, _ = experiment.train(config, after_epoch)
    except Exception as error:
        sweep.write(trial, status="failed", reason=_reason(error))
        raise
    sweep.write(trial, status="completed", result=result)
    experiment.remove_state(trainer)
    tune.report({"epoch": result["epochs"], sweep.metric: result["best_valid_score"]})


def _reason(error):
    text = " ".join(str(error).split())
    return text if isinstance(error, TigerError) else f"{type(error).__name__}: {text}"


def _node():
    """The name of this node of the cluster."""
    return f"{platform.node()}/{ray.get_runtime_context().get_node_id()[:8]}"


class TrialCallback(tune.Callback):
    """Records the end of trials that cannot do so themselves, and shows the progress of the sweep."""

    def __init__(self, sweep, bar):
        self.sweep, self.bar = sweep, bar

    def __getstate__(self):
        """Leave out the bar: Ray Tune pickles the callback, and a terminal cannot be pickled."""
        return {"sweep": self.sweep}

    def on_trial_result(self, iteration, trials, trial, result, **info):
        """A trial was evaluated."""
        self.bar.set_postfix_str(
            f"{trial.config['trial']}: epoch {result['epoch']}, {self.sweep.metric} {result[self.sweep.metric]:.4f}"
        )

    def on_trial_complete(self, iteration, trials, trial, **info):
        """A trial ended by itself or was stopped by the scheduler."""
        self._record_end(trial, "stopped", "by ASHA")

    def on_trial_error(self, iteration, trials, trial, **info):
        """A trial raised an error, which it recorded itself, or its process died."""
        self._record_end(trial, "failed", "its process ended without a message: out of memory, or killed")

    def _record_end(self, ray_trial, status, reason):
        trial = ray_trial.config["trial"]
        record = self.sweep.record(trial)
        if record is None and status == "stopped":
            status, reason = "failed", f"its node does not share the folder {self.sweep.folder}"
        if record is None or record["status"] not in ENDED:
            self.sweep.write(trial, status=status, reason=reason)
            record = self.sweep.record(trial)
        if record["status"] != "completed":
            shutil.rmtree(trial.settings["checkpoint_dir"], ignore_errors=True)
        result = record.get("result")
        score = f"{self.sweep.metric} {result['best_valid_score']:.4f}" if result else ""
        self.bar.write(", ".join(filter(None, [f"{trial}: {record['status']}", record["reason"], score])))
        self.bar.update()


def objective(sweep):
    """The objective of the search and the scheduler, as arguments of Ray."""
    return {"metric": sweep.metric, "mode": "max" if sweep.bigger else "min"}


class Trials(Searcher):
    """Gives Ray Tune the trials that have not ended, and then in an adaptive search those that HyperOpt chooses.

    HyperOpt's tree-structured Parzen estimator is first given the trials of earlier sessions, in their order.
    """

    def __init__(self, sweep):
        super().__init__(**objective(sweep))
        self.sweep = sweep
        self.waiting = [trial for trial in sweep.trials if not sweep.ended(trial)]
        self.running = {}
        if sweep.space is None:
            return
        from ray.tune.search.hyperopt import HyperOptSearch

        self.space = Space(sweep.space)
        self.hyperopt = HyperOptSearch(
            HyperOptSearch.convert_search_space(self.space.variants),
            **objective(sweep),
            points_to_evaluate=[self.space.point(trial.params) for trial in sweep.trials],
            n_initial_points=DRAWN_FIRST,
            random_state_seed=(sweep.seed + len(sweep.trials)) % SEEDS,  # a resumed sweep must not repeat its first draws
        )
        for trial in sweep.trials:
            self.hyperopt.suggest(trial.number)
            if sweep.ended(trial):
                self._report_score(trial.number, trial)

    def _report_score(self, number, trial):
        """Report the score of a trial to HyperOpt as the score of its suggestion ``number``."""
        result = (self.sweep.record(trial) or {}).get("result")
        score = result and {self.sweep.metric: result["best_valid_score"]}
        self.hyperopt.on_trial_complete(number, score, error=not score)

    def suggest(self, trial_id):
        """The next trial, as Ray's config."""
        if self.waiting:
            trial = self.waiting.pop(0)
        elif self.sweep.space is None or len(self.sweep.trials) >= self.sweep.size:
            return Searcher.FINISHED
        else:
            trial = self._choose()
        self.running[trial_id] = trial
        return {"trial": trial}

    def _choose(self):
        number = len(self.sweep.trials) + 1
        for _ in range(SUGGESTIONS):
            trial = self.sweep.add(self.space.params(self.hyperopt.suggest(number)))
            if trial.number == number:
                return trial
            if self.sweep.ended(trial):
                self._report_score(number, trial)
        raise TigerError(
            f"HyperOpt chose no new trial after {number - 1}: the space is too small for {self.sweep.size} trials; "
            f"lower --num_samples"
        )

    def on_trial_complete(self, trial_id, result=None, error=False):
        """Ray Tune: a trial ended."""
        trial = self.running.pop(trial_id)
        if self.sweep.space is not None:
            self._report_score(trial.number, trial)

    def save(self, checkpoint_path):
        """Save nothing: the records of the trials are in the folder of the sweep."""


def make_scheduler(sweep, scheduler, grace_period):
    """Make Ray's scheduler; ASHA is given the evaluations of trials that ended in earlier sessions."""
    if scheduler == "none":
        return FIFOScheduler()
    rungs = {"time_attr": "epoch", "max_t": sweep.epochs, "grace_period": grace_period, "reduction_factor": REDUCTION}
    asha = ASHAScheduler(**objective(sweep), **rungs)
    for trial in sweep.trials:
        record = sweep.record(trial) or {}
        if record.get("status") in ENDED and record.get("result"):
            ended = SimpleNamespace(trial_id=trial.key)
            asha.on_trial_add(None, ended)
            for epoch, entry in enumerate(record["result"]["epoch_log"], start=1):
                if "valid_score" in entry:
                    asha.on_trial_result(None, ended, {"epoch": epoch, sweep.metric: entry["valid_score"]})
            asha.on_trial_remove(None, ended)
    return asha


def run_trials(sweep, *, scheduler, grace_period, max_concurrent, cpus_per_trial, gpus_per_trial, ray_address):
    """Run the trials that have not ended.

    Args:
        scheduler: "asha", which stops trials that fall behind, or "none".
        grace_period: epochs before ASHA stops a trial.
        max_concurrent: number of trials at a time.
        cpus_per_trial: cores and threads of a trial; None: those of the largest node divided by ``max_concurrent``.
        ray_address: address of a running cluster whose nodes share the folders of the settings; None: this machine only.

    Raises:
        TigerError: the cluster does not answer, none of its nodes has enough CPUs and GPUs, or the sweep breaks off.
    """
    os.environ.update(TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1", TUNE_DISABLE_SIGINT_HANDLER="1", RAY_AIR_NEW_OUTPUT="0")
    start_ray(ray_address)
    try:
        cpus_per_trial = _cpus_of_a_trial(cpus_per_trial, gpus_per_trial, max_concurrent)
        with (
            tempfile.TemporaryDirectory(prefix="sweep-") as storage,
            tqdm(total=sweep.size, initial=sweep.size - sweep.left(), desc="trials") as bar,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            trainable = tune.with_parameters(
                run_trial, sweep=sweep, folder=os.getcwd(), threads=cpus_per_trial, plugins=IMPORTED_FILES
            )
            tune.Tuner(
                tune.with_resources(trainable, {"cpu": cpus_per_trial, "gpu": gpus_per_trial}),
                tune_config=tune.TuneConfig(
                    search_alg=Trials(sweep),
                    num_samples=sweep.left(),
                    scheduler=make_scheduler(sweep, scheduler, grace_period),
                    max_concurrent_trials=max_concurrent,
                    reuse_actors=False,  # a trial leaves RecBole's loggers and PyTorch's memory behind
                ),
                run_config=RunConfig(
                    name="ray",
                    storage_path=storage,
                    callbacks=[TrialCallback(sweep, bar)],
                    verbose=0,
                ),
            ).fit()
    except TuneError as error:  # its text is a traceback
        last = str(error).strip().splitlines()[-1].removeprefix(f"{TigerError.__module__}.{TigerError.__name__}: ")
        raise TigerError(f"the sweep broke off: {last}; then continue with --resume") from error
    finally:
        ray.shutdown()
    if left := sweep.left():
        raise TigerError(f"{left} of {sweep.size} trials have not ended; continue with --resume")


def start_ray(ray_address):
    """Connect to a cluster, or start one on this machine; its workers train in a thread and use one heap.

    Raises:
        TigerError: Ray runs already, does not start, or cannot connect.
    """
    if ray.is_initialized():
        raise TigerError("Ray already runs in this process, started by ray.init(): call ray.shutdown() before a sweep")
    for name, value in RAY_TIMEOUTS.items():
        os.environ.setdefault(name, value)
    if ray_address:
        # The cluster's nodes keep the environment in which they were started.
        found = {"address": ray_address, "runtime_env": {"env_vars": ONE_HEAP}}
    else:
        os.environ.update(ONE_HEAP)
        # Ray itself does not find GPUs under WSL or AMD GPUs.
        found = {"address": "local", "num_gpus": torch.cuda.device_count()}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**found, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler ends the process while it writes files
    except SystemExit:  # from Ray's handler while Ray starts
        if not callable(on_sigterm):
            raise
        on_sigterm(signal.SIGTERM, None)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = str(error).partition("\n")[0]
        if ray_address is None:
            raise TigerError(f"Ray does not start on this machine: {reason}") from error
        raise TigerError(
            f"the Ray cluster at {ray_address} refuses the connection: {reason}; give the cluster's token, as in "
            f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... recbole-tiger tune"
        ) from error


def _cpus_of_a_trial(cpus, gpus, max_concurrent):
    """The number of CPUs of each trial: ``cpus``, or if None those of the largest node divided by ``max_concurrent``.

    Raises:
        TigerError: no node has as many CPUs and GPUs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if cpus is None:
        # Ray's number heeds the limits of a container; os.cpu_count() does not.
        cpus = max(1, int(max(node.get("CPU", 0) for node in nodes)) // max_concurrent)
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise TigerError(
            f"a trial needs {cpus:g} CPUs and {gpus:g} GPUs, but no node has them ({has}): "
            f"lower --cpus_per_trial or --gpus_per_trial"
        )
    return cpus


def evaluate_winner(sweep, results_dir):
    """Test the winner and write its result file; a winner that has a result file is not tested again.

    Returns:
        the result (a dict), or None if no trial completed.
    """
    winner = sweep.winner()
    if winner is None:
        return None
    config = make_config(sweep.model, sweep.dataset, winner.settings)
    file = experiment.result_path(config, results_dir)
    if file.is_file():
        return read_result(file)
    result = sweep.record(winner)["result"]
    experiment.start_logging(config)
    train_data, _, test_data = experiment.load(config)
    trainer = experiment.make_trainer(config, train_data)
    trainer.eval_collector.data_collect(train_data)
    experiment.finish(result, trainer, test_data, file)
    return result


def tune_sweep(sweep, *, resume, **how):
    """Run the trials of a sweep that have not ended and write its tables and pictures.

    Args:
        resume: whether to continue a sweep that was started before.
        how: arguments of :func:`run_trials`.

    Raises:
        TigerError: the sweep was started before and ``resume`` is False, or it cannot run.
    """
    if left := sweep.left():
        begun = [trial for trial in sweep.trials if sweep.record(trial)]
        if begun and not resume:
            raise TigerError(
                f"{sweep.folder} holds a sweep of {sweep.size} trials, {left} of them unfinished: "
                f"continue it with --resume, or remove it"
            )
        with locked(sweep.checkpoints.with_name(f"{sweep.checkpoints.name}.lock"), f"the sweep of {sweep.folder}"):
            check_writable(f"{sweep.folder}.csv")
            check_trials(sweep)
            make_folder(sweep.folder)
            run_trials(sweep, **how)
    write_tables(sweep)
    draw_pictures(sweep)


def draw_pictures(sweep):
    """Draw the pictures of a sweep that varies codebooks of several levels, in its folder."""
    shown = {"codebook_size", "codebook_depth", "collision_rate"}  # a quantizer of one codebook has no depth
    rows = [row for row in sweep.rows() if row["status"] != "failed" and shown <= row.keys()]
    if rows and {"codebook_size", "codebook_depth"} & set(sweep.trials[0].params):
        codebook_heat_map(rows, sweep.metric, sweep.bigger, sweep.folder / "scores.png")
        collision_scatter(rows, sweep.metric, sweep.folder / "collisions.png")

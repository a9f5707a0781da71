"""Run a grid of models, datasets and seeds; each cell is one process and one result file.

Finished cells are skipped, a killed cell of TIGER or VQRec continues from its last epoch, and a killed baseline starts
again. If a cell fails, its error is printed and the grid continues. recbole-tiger leaderboard makes the tables.

python benchmarks/leaderboard.py --data_path=dataset
python benchmarks/leaderboard.py --data_path=dataset --only='amazon-beauty/*/2020,*/TIGER*/*' --dry-run
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from recbole_tiger.errors import TigerError
from recbole_tiger.report.results import read_results
from recbole_tiger.runs import experiment
from recbole_tiger.settings.arguments import parse_arguments, read_yaml

HERE = Path(__file__).parent
LOGS = Path("log/leaderboard")
REFRESH = 10  # seconds between two updates of the time in the progress line


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        model, dataset, seed: what is run.
        settings: those that lie over the protocol.
        file: where its result is written.
        failure: why it cannot run, as without its dataset; None where it can.
    """

    model: str
    dataset: str
    seed: int
    settings: dict
    file: Path
    failure: str | None = None

    @property
    def name(self):
        """The name that ``--only`` matches."""
        return f"{self.dataset}/{self.model}/{self.seed}"

    def command(self):
        """The command that runs the cell, or reads its result if there is one."""
        settings = {**self.settings, "seed": self.seed, "show_progress": False}
        return [
            *(sys.executable, "-m", "recbole_tiger", "run", f"--model={self.model}", f"--dataset={self.dataset}"),
            *("--resume", f"--results_dir={self.file.parent}"),
            *(f"--{key}={json.dumps(value)}" for key, value in settings.items()),
        ]


def read_grid(file, only, over, results_dir):
    """Cells of a grid file, in the order in which they run: all of one seed, then the next.

    Args:
        only: patterns of names, of which a cell has to match one; [] for all.
        over: settings that lie over those of the file.

    Raises:
        TigerError: a model or a setting is unknown.
    """
    grid = read_yaml(file)
    unknown = set(grid) - {"datasets", "seeds", "settings", "models"}
    if unknown:
        raise TigerError(f"{file} has unknown keys: {', '.join(sorted(unknown))}")
    absent = [key for key in ("datasets", "seeds", "models") if not grid.get(key)]
    if absent:
        raise TigerError(f"{file} lacks {', '.join(absent)}")
    if not isinstance(grid["seeds"], list):
        raise TigerError(f"{file}: seeds has to be a list, like [2020, 2021], not {grid['seeds']!r}")
    datasets, models = (
        part if isinstance(part, dict) else dict.fromkeys(part) for part in (grid["datasets"], grid["models"])
    )
    pairs = [(dataset, model) for dataset in datasets for model in models]
    cells = []
    for dataset, model in tqdm(pairs, desc="reading the grid"):
        names = {seed: f"{dataset}/{model}/{seed}" for seed in grid["seeds"]}
        seeds = [seed for seed in names if not only or any(fnmatchcase(names[seed], pattern) for pattern in only)]
        if not seeds:
            continue
        layers = [grid.get("settings"), datasets[dataset], models[model], over]
        settings = {key: value for layer in layers for key, value in (layer or {}).items()}
        config, failure = experiment.configure(model, dataset, settings), None
        try:
            experiment.fit_to_data(config, settings)
        except TigerError as error:
            failure = str(error)
        for seed in seeds:
            config["seed"] = seed
            cells.append(Cell(model, dataset, seed, settings, experiment.result_path(config, results_dir), failure))
    if not cells:
        raise TigerError(f"--only={','.join(only)} matches no dataset/model/seed of {file}")
    return sorted(cells, key=lambda cell: grid["seeds"].index(cell.seed))


def seconds_of(result, limit):
    """Wall time of a finished run if its training and validation had a limit in seconds (None: no limit)."""
    epochs = sum(epoch["train_seconds"] + epoch.get("eval_seconds", 0) for epoch in result["epoch_log"])
    if limit is not None and (result["out_of_time"] or epochs > limit):
        epochs = limit
    return result["prepare_seconds"] + epochs + result["eval_seconds"]


def estimate(cell, results):
    """Seconds that a cell will take.

    Returns:
        seconds, and where they are from: the median of earlier runs of its model, on its dataset or else on others, under
        its limit of training; or else that limit; None where there is none.
    """
    limit = cell.settings.get("max_minutes")
    limit = None if limit is None else 60 * limit
    of_model = [result for result in results if result["label"] == cell.model]
    of_dataset = [result for result in of_model if result["dataset"] == cell.dataset]
    if of_model:
        source = "earlier runs" if of_dataset else "earlier runs on another dataset"
        return statistics.median(seconds_of(result, limit) for result in of_dataset or of_model), source
    return limit, "no earlier run" if limit is None else "max_minutes"


def show_plan(cells, results):
    """Print every cell with an estimate of its time."""
    rows, total, unknown = [], 0.0, 0
    for cell in cells:
        if cell.file.is_file():
            rows.append([cell.name, "finished", "", ""])
            continue
        if cell.failure:
            rows.append([cell.name, "cannot run", "", cell.failure])
            continue
        seconds, source = estimate(cell, results)
        total += seconds or 0
        unknown += seconds is None
        rows.append([cell.name, "to run", "?" if seconds is None else f"{seconds / 60:.1f}", source])
    print(tabulate(rows, ["cell", "", "minutes", "estimated from, or why not"], tablefmt="github", disable_numparse=True))
    more = f", and {unknown} of unknown length" if unknown else ""
    print(f"\n{sum(row[1] == 'to run' for row in rows)} of {len(rows)} cells to run: about {total / 60:.0f} minutes{more}")


def run_cell(cell, bar):
    """Run a cell in a separate process; return None, or the reason of its failure."""
    if cell.failure:
        return cell.failure
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{cell.file.stem}.log"
    with open(log, "w", encoding="utf-8") as stream:
        process = subprocess.Popen(cell.command(), stdout=stream, stderr=subprocess.STDOUT)  # noqa: S603
        try:
            while (status := process.poll()) is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(REFRESH)
                bar.refresh()
        finally:  # ends the cell of an interrupted grid too
            if process.poll() is None:
                process.terminate()
                process.wait()
    if status == 0:
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    what = f"killed by signal {-status}" if status < 0 else f"status {status}"
    return f"{what}: {lines[-1].strip() if lines else 'no output'} (whole output: {log})"


def main(argv=None):
    """Run the grid; the status is 1 if a cell failed."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Any setting, as --key=value, lies over those of the grid.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--grid", type=Path, default=HERE / "leaderboard.yaml", help="(default: leaderboard.yaml beside this)"
    )
    parser.add_argument("--results_dir", type=Path, help="(default: results/<name of the grid> beside this)")
    parser.add_argument("--only", default="", help="patterns of dataset/model/seed, separated by commas")
    parser.add_argument("--dry-run", action="store_true", help="print the cells with estimates of their time")
    args, rest = parser.parse_known_args(argv)
    results_dir = args.results_dir or HERE / "results" / args.grid.stem
    try:
        cells = read_grid(args.grid, [p for p in args.only.split(",") if p], parse_arguments(rest), results_dir)
        results = read_results(results_dir)
    except TigerError as error:
        print(f"leaderboard.py: error: {error}", file=sys.stderr)
        return 2
    if args.dry_run:
        show_plan(cells, results)
        return 0

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the running cell too
    rows = []
    with tqdm(cells, unit="cell") as bar:
        for cell in bar:
            bar.set_description(cell.name)
            begin, finished = time.perf_counter(), cell.file.is_file()
            try:
                failure = None if finished else run_cell(cell, bar)
            except (KeyboardInterrupt, SystemExit) as end:
                print("leaderboard.py: interrupted; the same command goes on from here", file=sys.stderr)
                return end.code if isinstance(end, SystemExit) else 130
            if failure:
                bar.write(f"{cell.name} failed: {failure}", file=sys.stderr)
            minutes = "" if finished else f"{(time.perf_counter() - begin) / 60:.1f}"
            rows.append([cell.name, "failed" if failure else "was finished" if finished else "finished", minutes])
    print(tabulate(rows, ["cell", "", "minutes"], tablefmt="github", disable_numparse=True))
    print(f"\ntables: recbole-tiger leaderboard --results_dir={os.path.relpath(results_dir)}")
    return int(any(row[1] == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())

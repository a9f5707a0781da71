"""Every command and snippet of the README runs, in its order, in one folder; with fewer users and epochs, smaller models."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.originals import served, write_published_size
from recbole_tiger.catalogue.quantizers import QUANTIZERS
from recbole_tiger.cli import main
from recbole_tiger.model import MODELS
from recbole_tiger.settings.properties import defaults_of, protocol
from tests.conftest import write_dataset

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = {
    "epochs": 1,
    "hidden_size": 32,
    "inner_size": 64,
    "n_layers": 1,
    "n_heads": 2,
    "eval_step": 1,
    "show_progress": False,
    "user_inter_num_interval": "[0,40)",  # 298 of the 943 users of ml-100k, and all its items
}
SMALL_TIGER = {"head_size": 16, "n_decoder_layers": 1, "rq_vae_steps": 150, "rq_vae_warmup_steps": 30}


def blocks():
    """Language and lines of the README's code blocks."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands():
    """The recbole-tiger commands and the Python snippets, in the order of the README."""
    for language, text in blocks():
        if language == "python":
            yield "python", text
        else:
            for line in text.splitlines():
                found = re.search(r"recbole-tiger .*", line)
                if found:
                    yield "command", found.group()


def vqrec(arguments, folder):
    """Arguments of a small VQRec on made-up datasets, the second time with the checkpoint of the first."""
    for name in ("one", "two", "three"):
        write_dataset(folder / "dataset", name)
    small = {**SMALL, "epochs": 2, "permutation_epochs": 1, "codebook_size": 8, "codebook_depth": 4}
    places = {"amazon-sports-outdoors,amazon-toys-games": "one,two", "amazon-beauty": "three"}
    for old, new in places.items():
        arguments = [part.replace(old, new) for part in arguments]
    newest = max((folder / "saved").glob("VQRec-*.pth"), key=lambda file: file.stat().st_mtime, default=None)
    arguments = [f"--pre_model_path={newest}" if part.startswith("--pre_model_path=") else part for part in arguments]
    return [*arguments, *(f"--{key}={value}" for key, value in small.items())]


def shortened(line, folder, official):
    """Arguments of a command with SMALL settings, and the newest checkpoint where the README writes a placeholder.

    The sweep is the README's own, of four trials. A download comes from ``official``, made-up files of the published size on
    this machine.
    """
    arguments = shlex.split(line.replace("<", "\\<").replace(">", "\\>"))[1:]
    if arguments[0] == "download":
        return [*arguments, f"--source={official}"]
    if arguments[0] == "leaderboard":
        return arguments
    if arguments[0] == "add-items":
        (folder / "new.item").write_text("item_id:token\tmovie_title:token_seq\nnew\tThe New One\n")
    if arguments[0] in ("recommend", "add-items"):
        newest = max((folder / "saved").glob("TIGER-*.pth"), key=lambda file: file.stat().st_mtime)
        return [f"--checkpoint={newest}" if part.startswith("--checkpoint=") else part for part in arguments]
    if arguments[0] == "tune":
        (sweep,) = re.findall(r"^```yaml\n(# mine.yaml.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
        (folder / "mine.yaml").write_text(sweep)
        arguments = [re.sub("^--sweep=.*", "--sweep=mine.yaml", part) for part in arguments] + ["--num_samples=2"]
    if "--model=VQRec" in arguments:
        return vqrec(arguments, folder)
    arguments = [part.replace("--plugins=tests", f"--plugins={ROOT / 'tests'}") for part in arguments]
    small = {**SMALL, **SMALL_TIGER}
    kept = [part for part in arguments if part.removeprefix("--").split("=")[0] not in small]
    return [*kept, *(f"--{key}={value}" for key, value in small.items())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """URL of a server on this machine in place of the data's home."""
    originals = tmp_path_factory.mktemp("official")
    write_published_size(originals, "amazon-beauty")
    with served(originals) as (_, url):
        yield url


@pytest.mark.parametrize("number", range(len(list(commands()))))
def test_runs(number, folder, official, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for registry in (MODELS, QUANTIZERS):  # what a plugin registers is forgotten
        monkeypatch.setattr(registry, "data", dict(registry.data))
        monkeypatch.setattr(registry, "settings", dict(registry.settings))
    kind, text = list(commands())[number]
    if kind == "python":
        exec(text.replace('{"epochs": 3}', repr({**SMALL, **SMALL_TIGER})), {"__name__": "__main__"})
        return
    command, *rest = shortened(text, folder, official)
    status = main([command, *rest])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    if command in ("run", "compare"):
        models = re.search(r"--label=(\S+)|--models?=(\S+)", re.sub(r"(.*)(--label=.*)", r"\2 \1", text))
        models = (models.group(1) or models.group(2)).split(",")
        assert all(re.search(rf"^\| *{model} ", shown.out, flags=re.MULTILINE) for model in models)
    if command == "tune":
        assert len(re.findall(r"^\|.* (completed( \*)?|stopped) \|$", shown.out, flags=re.MULTILINE)) == 4
    if command == "recommend":
        assert "log-probability" in shown.out
    if command == "download":
        assert (folder / "dataset/amazon-beauty/amazon-beauty.item").is_file()


def test_ci_uses_the_commands_of_the_readme():
    script = [line.split() for line in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()]
    setup = [text for language, text in blocks() if language == "bash" and "-m pytest" in text]
    assert len(setup) == 1
    for command in setup[0].strip().split(" && "):
        words = command.replace("python3 -m venv", '"$python" -m venv').split()
        assert any([word for word in line if word != "--quiet"] == words for line in script), command


def test_tables_are_what_the_result_files_give(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    command = ["leaderboard", "--results_dir=benchmarks/results/leaderboard"]
    file = "benchmarks/results/leaderboard/tables.md"
    assert " ".join(["`recbole-tiger", *command]) + "`" in README
    assert " ".join(["recbole-tiger", *command, f"--output={file}"]) in (ROOT / "benchmarks/README.md").read_text()
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert Path(file).read_text(encoding="utf-8") == shown
    tables = re.findall(r"^## .*?(?=^## |\Z)", shown, flags=re.MULTILINE | re.DOTALL)
    (beauty,) = [table for table in tables if table.startswith("## amazon-beauty\n")]
    assert beauty in README


def test_dependencies_table_names_every_dependency_with_its_bound():
    declared = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| ([^|]*) \|", README.split("## Dependencies")[1], flags=re.MULTILINE)
    named = [requirement.replace(" ", "") for row in rows for requirement in row.split(", ")]
    for requirement in re.findall(r'"([^"]+)"', declared.group(1)):
        assert requirement in named, requirement


def test_settings_table_tells_the_defaults():
    defaults = {**protocol(), **defaults_of("TIGER")}
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", README.split("## Settings")[1], flags=re.MULTILINE)
    checked = 0
    for names, values in rows:
        for name, value in zip(re.findall(r"`(\w+)`", names), re.split(r", ", values.strip()), strict=True):
            if name in defaults:
                assert str(defaults[name]) == value.strip("`"), name
                checked += 1
    assert checked >= 8

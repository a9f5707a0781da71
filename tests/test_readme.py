"""Every command and snippet of the pages runs, in its order, in one folder; with fewer users and epochs, smaller models.

Scripts of ``benchmarks/`` and searches that take hours are planned, or run small in test_benchmarks.py.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from benchmarks.originals import served, write_published_size
from recbole_tiger.cli import main, make_parser
from recbole_tiger.runs import experiment
from recbole_tiger.settings.arguments import check_keys, parse_arguments
from recbole_tiger.settings.properties import defaults_of, protocol
from tests.conftest import write_dataset

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "properties/README.md").read_text(encoding="utf-8")
MEASUREMENTS = sorted((ROOT / "benchmarks").glob("*.md"))
# What a reader can run in one folder, from the top of the first to the end of the last.
RUN = [README, SETTINGS, (ROOT / "benchmarks/results/README.md").read_text(encoding="utf-8")]
PAGES = sorted(page for page in ROOT.rglob("*.md") if not {".venv", ".git", "build"} & set(page.relative_to(ROOT).parts))
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


def blocks(*pages):
    """Language and lines of the code blocks of pages."""
    return [
        block
        for page in pages
        for block in re.findall(r"^```(bash|python)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    ]


def commands():
    """The recbole-tiger commands and the Python snippets, in the order of the pages."""
    for language, text in blocks(*RUN):
        if language == "python":
            yield "python", text
        else:
            for line in text.splitlines():
                found = re.search(r"recbole-tiger .*", line)
                if found:
                    yield "command", found.group()


def with_settings(arguments, settings):
    """Arguments with ``settings`` in place of their own."""
    kept = [part for part in arguments if part.removeprefix("--").split("=")[0] not in settings]
    return [*kept, *(f"--{key}={value}" for key, value in settings.items())]


def vqrec(arguments, folder):
    """Arguments of a small VQRec on made-up datasets."""
    for name in ("one", "two", "three"):
        write_dataset(folder / "dataset", name)
    small = {**SMALL, "epochs": 2, "permutation_epochs": 1, "codebook_size": 8, "codebook_depth": 4}
    places = {"amazon-sports-outdoors,amazon-toys-games": "one,two", "amazon-beauty": "three"}
    for old, new in places.items():
        arguments = [part.replace(old, new) for part in arguments]
    return with_settings(arguments, small)


def with_newest(part, folder):
    """An argument with a file in place of what a shell would put there."""
    pattern = re.search(r"\$\(ls -t (\S+) \| head -1\)", part)
    if pattern is None:
        return part
    newest = max(folder.glob(pattern[1]), key=lambda file: file.stat().st_mtime)
    return part.replace(pattern[0], str(newest))


def shortened(line, folder, official):
    """Arguments of a command with SMALL settings, and the newest checkpoint of its pattern.

    The sweep is the page's own, of four trials. A download comes from ``official``, made-up files of the published size on
    this machine.
    """
    arguments = [with_newest(part, folder) for part in shlex.split(line)[1:]]
    if arguments[0] == "download":
        return [*arguments, f"--source={official}"]
    if arguments[0] == "leaderboard":
        return arguments
    if arguments[0] == "add-items":
        (folder / "new.item").write_text("item_id:token\tmovie_title:token_seq\nnew\tThe New One\n")
    if arguments[0] in ("recommend", "add-items"):
        return arguments
    if arguments[0] == "tune":
        (sweep,) = re.findall(r"^```yaml\n(# mine.yaml.*?)^```", SETTINGS, flags=re.MULTILINE | re.DOTALL)
        (folder / "mine.yaml").write_text(sweep)
        arguments = [re.sub("^--sweep=.*", "--sweep=mine.yaml", part) for part in arguments] + ["--num_samples=2"]
    if {"--model=VQRec", "--model=VQRec-history"} & set(arguments):
        return vqrec(arguments, folder)
    arguments = [part.replace("--plugins=tests", f"--plugins={ROOT / 'tests'}") for part in arguments]
    return with_settings(arguments, {**SMALL, **SMALL_TIGER})


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
    kind, text = list(commands())[number]
    if kind == "python":
        exec(text.replace('{"epochs": 1}', repr({**SMALL, **SMALL_TIGER})), {"__name__": "__main__"})
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
    setup = [text for language, text in blocks(README) if language == "bash" and "-m pytest" in text]
    assert len(setup) == 1
    for command in setup[0].strip().split(" && "):
        words = command.replace("python3 -m venv", '"$python" -m venv').split()
        assert any([word for word in line if word != "--quiet"] == words for line in script), command


def test_the_pages_have_every_kind_of_command():
    """None is lost where text moves from page to page."""
    names = {text.split()[1] for kind, text in commands() if kind == "command"}
    assert names == {"add-items", "compare", "download", "leaderboard", "recommend", "run", "tokenize", "tune"}
    assert sum(kind == "python" for kind, _ in commands()) >= 5


def test_every_page_with_commands_is_run():
    """A page is in RUN, or its commands are those of benchmarks/, which the tests below and test_benchmarks.py take."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if text not in RUN and blocks(text):
            assert page in MEASUREMENTS, page
            assert all(language == "bash" for language, _ in blocks(text)), page


def benchmark_lines():
    """The lines of the code blocks of benchmarks/, without comments and prompts of continuation."""
    pages = [page.read_text(encoding="utf-8") for page in MEASUREMENTS]
    text = "".join(text for _, text in blocks(*pages)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("line", benchmark_lines())
def test_commands_of_benchmarks(line, official, tmp_path, request, monkeypatch, capsys):
    """Their scripts are here and know every option; the grid is planned, tables and downloads are made."""
    words = shlex.split(line, comments=True)
    if words[0] == "python":
        script = ROOT / words[1]
        source = script.read_text(encoding="utf-8")
        if script.name == "leaderboard.py":
            spec = importlib.util.spec_from_file_location(script.stem, script)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            monkeypatch.chdir(ROOT)
            real_data = request.getfixturevalue("real_data")
            planned = [f"--data_path={real_data}" if word.startswith("--data_path=") else word for word in words[2:]]
            assert module.main([*planned, "--dry-run"]) == 0
            assert re.search(r"\d+ of \d+ cells to run", capsys.readouterr().out)
        else:
            others = [word for word in words[2:] if word.startswith("--") and f'"{word.partition("=")[0]}"' not in source]
            assert not others or "parse_known_args" in source, others  # these are settings of the model
            check_keys(parse_arguments(others), line)
    elif words[0] == "benchmarks/gpu.sh":
        assert (ROOT / words[0]).is_file()
    elif words[1] == "download":
        assert main([*words[1:], f"--data_path={tmp_path}", f"--source={official}"]) == 0
    elif words[1] == "leaderboard":
        monkeypatch.chdir(ROOT)
        if "--results_dir=benchmarks/results/leaderboard" not in words:
            pytest.skip("its folder is the one that the line before it would fill")
        kept = [word for word in words[1:] if not word.startswith("--output=")]
        assert main(kept) == 0
    elif words[1] == "run":
        args, rest = make_parser().parse_known_args(words[1:])
        settings = {**parse_arguments(rest), "data_path": str(request.getfixturevalue("real_data")), "gpu_id": ""}
        experiment.prepare(args.model, args.dataset, settings)  # which checks all settings
    else:
        assert words[:2] == ["recbole-tiger", "tune"]  # test_benchmarks.py plans it


def test_tables_are_what_the_result_files_give(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    command = ["leaderboard", "--results_dir=benchmarks/results/leaderboard"]
    file = "benchmarks/results/leaderboard/tables.md"
    quality = (ROOT / "benchmarks/quality.md").read_text(encoding="utf-8")
    assert " ".join(["recbole-tiger", *command, f"--output={file}"]) in quality
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert Path(file).read_text(encoding="utf-8") == shown
    tables = re.findall(r"^## .*?(?=^## |\Z)", shown, flags=re.MULTILINE | re.DOTALL)
    (beauty,) = [table for table in tables if table.startswith("## amazon-beauty\n")]
    (table,) = re.findall(r"<!-- table amazon-beauty -->\n(.*?)<!-- end -->", quality, flags=re.DOTALL)
    rest = beauty.removeprefix(f"## amazon-beauty\n{table}")
    assert rest != beauty and rest.startswith("|")  # the table by days follows


def test_every_dependency_says_what_for():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r"^(?:dependencies|test) = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    lines = [line for part in lists for line in part.splitlines()]
    assert len(lines) > 25
    for line in lines:
        assert re.fullmatch(r' +"[^"]+",  # .+|    "recbole-tiger\[hyperopt\]",', line), line


def anchors_of(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target), link


def test_the_front_page_is_short():
    assert len(README.split()) <= 1200
    assert len((ROOT / "benchmarks/README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_settings_table_tells_the_defaults():
    defaults = {**protocol(), **defaults_of("TIGER")}
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", SETTINGS.split("\n## ")[1], flags=re.MULTILINE)
    checked = 0
    for names, values in rows:
        for name, value in zip(re.findall(r"`(\w+)`", names), re.split(r", ", values.strip()), strict=True):
            if name in defaults:
                assert str(defaults[name]) == value.strip("`"), name
                checked += 1
    assert checked >= 8

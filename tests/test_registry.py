"""Models and quantizers from outside of the package: a user's file works as those that come along do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_tiger.errors import TigerError
from recbole_tiger.registry import Registry, import_file
from tests.test_command_line import rows_of

TOY = Path(__file__).with_name("toy.py")


def told(*arguments):
    """What a command prints; it has to end well."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def shared(data_path):
    """Settings of a command's, as its arguments."""
    settings = {
        "data_path": data_path,
        "item_embeddings": data_path / "tiny/embeddings.npz",
        "quantizer": "signs",
        "codebook_size": 8,
        "codebook_depth": 5,
        "epochs": 2,
        "show_progress": False,
    }
    return ["--dataset=tiny", f"--plugins={TOY}", *(f"--{key}={value}" for key, value in settings.items())]


def test_a_model_and_a_quantizer_run_through_the_commands(shared):
    told("-m", "recbole_tiger", "run", "--model=Toy", *shared, "--toy_scale=0.5")
    (file,) = Path("results").glob("tiny-Toy-*.json")
    result = json.loads(file.read_text())
    assert result["settings"]["toy_scale"] == 0.5
    assert result["settings"]["first_number"] == 0
    assert result["semantic_ids"]["used_codes"] == [2] * 5

    names = ["SASRec", "Toy", "Shallow"]
    table = told("-m", "recbole_tiger", "compare", f"--models={','.join(names)}", *shared)
    assert sorted(rows_of(table)) == sorted(names)

    (checkpoint, *_) = Path("saved").glob("Toy-*.pth")
    which = [f"--plugins={TOY}", f"--checkpoint={checkpoint}"]
    listed = told("-m", "recbole_tiger", "recommend", *which, "--history=i3,i9", "--k=3")
    assert len([line for line in listed.splitlines() if "number" in line]) == 3


def test_an_edited_quantizer_makes_other_codes(shared):
    """The cached codes are of the file as it was."""
    mine = Path("mine.py")
    mine.write_text(TOY.read_text())
    shared = [f"--plugins={mine}" if argument.startswith("--plugins") else argument for argument in shared]
    tables = []
    for _ in range(2):
        told("-m", "recbole_tiger", "tokenize", *shared, "--output=ids.tsv")
        tables.append(Path("ids.tsv").read_text())
        mine.write_text(TOY.read_text().replace('x > self.learnt["median"]', 'x < self.learnt["median"]'))
    assert tables[0] != tables[1]


def test_an_edited_helper_of_a_quantizer_makes_other_codes(shared):
    """The file of the quantizer stays as it is."""
    Path("helper.py").write_text("SIGN = 1\n")
    signs = TOY.read_text().replace('x > self.learnt["median"]', 'helper.SIGN * (x - self.learnt["median"]) > 0')
    Path("mine.py").write_text(f"import helper\n{signs}")
    shared = ["--plugins=helper.py,mine.py" if argument.startswith("--plugins") else argument for argument in shared]
    tables = []
    for sign in (1, -1):
        Path("helper.py").write_text(f"SIGN = {sign}\n")
        told("-m", "recbole_tiger", "tokenize", *shared, "--output=ids.tsv")
        tables.append(Path("ids.tsv").read_text())
    assert tables[0] != tables[1]


def test_a_plugin_whose_base_class_changes_is_another_run(shared):
    """Its own file stays as it is."""
    Path("base.py").write_text(
        TOY.read_text().replace("class Shallow(TIGER)", "class Base(TIGER)").replace("Shallow", "Base")
    )
    Path("child.py").write_text(
        "import base\nfrom recbole_tiger import register_model\n\n\nclass Child(base.Base): pass\n\n\n"
        "register_model(Child, {'n_layers': 1, 'n_decoder_layers': 1, 'epochs': 1})\n"
    )
    shared = ["--plugins=base.py,child.py" if argument.startswith("--plugins") else argument for argument in shared]
    for _ in range(2):
        told("-m", "recbole_tiger", "run", "--model=Child", *shared)
        with open("base.py", "a") as file:
            file.write("# edited\n")
    assert len(list(Path("results").glob("tiny-Child-*.json"))) == 2


def test_a_quantizer_in_a_package_is_tuned(shared, tmp_path, monkeypatch):
    """A trial imports the plugin, and not the module of the package, which refers to another one by a dot."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/__init__.py").touch()
    (tmp_path / "own/signs.py").write_text("from .toy import Signs\n")
    (tmp_path / "own/toy.py").write_text("from .zero import ZERO\n" + TOY.read_text().replace(": 0}", ": ZERO}"))
    (tmp_path / "own/zero.py").write_text("ZERO = 0\n")
    Path("mine.py").write_text("import own.signs\n")
    Path("mine.yaml").write_text("first_number: [0]\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    shared = ["--plugins=mine.py" if argument.startswith("--plugins") else argument for argument in shared]
    told("-m", "recbole_tiger", "tune", "--model=Toy", "--sweep=mine.yaml", "--scheduler=none", *shared)
    (table,) = Path("results").glob("tiny-Toy-mine-*/trials.json")
    assert [trial["status"] for trial in json.loads(table.read_text())] == ["completed"]


def test_a_model_and_a_quantizer_are_tuned(shared):
    Path("mine.yaml").write_text("toy_scale: [0.5, 2.0]\nfirst_number: [0, 3]\n")
    told("-m", "recbole_tiger", "tune", "--model=Toy", "--sweep=mine.yaml", "--scheduler=none", *shared)
    (table,) = Path("results").glob("tiny-Toy-mine-*/trials.json")
    trials = json.loads(table.read_text())
    assert [trial["status"] for trial in trials] == ["completed"] * 4
    assert sum(trial["winner"] for trial in trials) == 1


def test_an_edited_plugin_is_another_run(shared, tmp_path):
    """And settings of a quantizer that is registered and not chosen are not of a run."""
    plugin = tmp_path / "own_toy.py"
    plugin.write_text(TOY.read_text())
    code = f"""
from recbole_tiger.registry import import_file
from recbole_tiger.runs.experiment import prepare
from recbole_tiger.settings.arguments import parse_arguments
from recbole_tiger.settings.identity import run_inputs
settings = parse_arguments({[argument for argument in shared if not argument.startswith(("--plugins", "--dataset"))]!r})
kmeans = {{**settings, "quantizer": "rq_kmeans"}}
plain = run_inputs(prepare("TIGER", "tiny", kmeans))
import_file({str(plugin)!r})
assert run_inputs(prepare("TIGER", "tiny", kmeans)) == plain
for _ in range(2):
    found = run_inputs(prepare("TIGER", "tiny", settings))
    assert found["settings"]["first_number"] == 0
    print("inputs", *found["inputs"], *run_inputs(prepare("Toy", "tiny", kmeans))["inputs"][1:])
    open({str(plugin)!r}, "a").write("# edited")
"""
    first, second = (line.split()[1:] for line in told("-c", code).splitlines() if line.startswith("inputs"))
    (embeddings, quantizer, model), (other_embeddings, other_quantizer, other_model) = first, second
    assert embeddings == other_embeddings
    assert quantizer == model != other_quantizer == other_model


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"codebook_size": 64}, "the settings of quantizer mine have codebook_size, which has another default"),
        ({"temperature": 1.0, "epochs": 9, "own": 1}, "have epochs, temperature, which RecBole or a model reads: rename it"),
    ],
)
def test_a_quantizer_does_not_take_the_settings_of_others(settings, told):
    """A run with another quantizer would not read them."""
    code = f"""
from recbole_tiger import register_quantizer
from recbole_tiger.catalogue.quantizers.lsh import LSH
from recbole_tiger.cli import main
register_quantizer("mine", LSH, {settings})
raise SystemExit(main(["settings", "TIGER"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert told in done.stderr


def test_a_parameter_of_a_quantizer_that_is_no_setting(shared):
    mine = TOY.read_text().replace("codebook_depth, first_number", "codebook_depth, first_number, alpha")
    Path("mine.py").write_text(mine)
    shared = ["--plugins=mine.py" if argument.startswith("--plugins") else argument for argument in shared]
    command = [sys.executable, "-m", "recbole_tiger", "tokenize", *shared]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "quantizer signs takes alpha: register it with a default for this" in done.stderr


def test_recbole_runs_what_is_registered(data_path):
    code = f"""
import sys
from recbole_tiger import run_recbole
from recbole_tiger.registry import import_file
import_file({str(TOY)!r})
settings = {{"data_path": {str(data_path)!r}, "item_embeddings": {str(data_path / "tiny/embeddings.npz")!r}, "epochs": 1,
             "quantizer": "signs", "codebook_size": 8, "codebook_depth": 5, "show_progress": False}}
for model in ("Toy", "Shallow"):
    print("result", model, run_recbole(model=model, dataset="tiny", config_dict=settings)["test_result"]["recall@10"])
"""
    lines = [line.split() for line in told("-c", code).splitlines() if line.startswith("result")]
    assert [line[1] for line in lines] == ["Toy", "Shallow"]
    assert all(0 <= float(line[2]) <= 1 for line in lines)


def test_what_cannot_be_registered_is_refused():
    registry = Registry("quantizer", lsh="recbole_tiger.catalogue.quantizers.lsh.LSH")
    registry.register("mine", dict, {})
    registry.register("mine", dict, {"again": 1})  # as where a file is imported twice
    assert registry["mine"] is dict
    with pytest.raises(TigerError, match="a quantizer called lsh already exists: choose another name"):
        registry.register("lsh", dict, {})


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("from recbole_tiger import register_model\nregister_model(dict)", "is no subclass of SemanticIDModel"),
        (
            "from recbole_tiger import SemanticIDModel, register_model\n"
            "class SASRec(SemanticIDModel): pass\nregister_model(SASRec)",
            "RecBole has a model called SASRec: choose another name than SASRec",
        ),
        (
            "from recbole_tiger import SemanticIDModel, register_model\n"
            "class Sasrec(SemanticIDModel): pass\nregister_model(Sasrec)",
            "RecBole has a model called SASRec: choose another name than Sasrec",
        ),
        ("from recbole_tiger import register_quantizer\nregister_quantizer('mine', dict)", "is no subclass of Quantizer"),
    ],
)
def test_a_plugin_that_fails_is_named(tmp_path, code, said):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(TigerError, match=said) as caught:
        import_file("mine.py")
    assert "plugin mine.py" in str(caught.value)


def test_a_plugin_does_not_take_the_name_of_another_module(tmp_path):
    for file in ("json.py", "one/mine.py", "two/mine.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    import_file("one/mine.py")
    import_file("one/mine.py")
    for file in ("json.py", "two/mine.py"):
        with pytest.raises(TigerError, match=f"plugin {file}: there is another module called .*; rename the file"):
            import_file(file)
    assert json.loads("1") == 1
    del sys.modules["mine"]


def test_an_absent_plugin_is_named():
    with pytest.raises(TigerError, match=r"plugin none.py does not exist"):
        import_file("none.py")
    Path("mine.txt").touch()
    with pytest.raises(TigerError, match=r"plugin mine.txt does not end in .py"):
        import_file("mine.txt")

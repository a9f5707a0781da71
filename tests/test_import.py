"""``import recbole_tiger``: what it loads, and that RecBole knows TIGER whichever of the two is imported first."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import recbole_tiger
from recbole_tiger.settings import protocol
from tests.conftest import write_dataset

PACKAGE = Path(recbole_tiger.__file__).parent
MODULES = sorted(
    ".".join(("recbole_tiger", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
    if file.name != "__main__.py"
)
HEAVY = ["torch", "recbole", "pandas", "numpy", "ray", "sklearn", "matplotlib", "transformers"]


def python(code, *arguments, **environment):
    """What a new Python process prints for some code; standard error where it fails."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr


LOADED = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


def test_importing_loads_neither_recbole_nor_pytorch():
    assert python(f"import recbole_tiger; {LOADED}") == "[]"
    assert python("import recbole_tiger; print(recbole_tiger.__version__)") == recbole_tiger.__version__


def test_importing_leaves_the_allocator_alone():
    code = "import recbole_tiger, recbole.quick_start, sys; print('recbole_tiger.training.memory' in sys.modules)"
    assert python(code) == "False"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--help"], "show this help message"),
        (["tune", "--help"], "show this help message"),
        (["run", "--modl=TIGER"], "the following arguments are required: --dataset, --model"),
        (["run", "--model=TIGR", "--dataset=tiny"], "unknown model 'TIGR'; did you mean TIGER?"),
        (["compare", "--models=SASRec,TIGR", "--dataset=tiny"], "unknown model 'TIGR'; did you mean TIGER?"),
        (["run", "--model=SASRec", "--dataset=tiny", "--epoch=3"], "unknown setting 'epoch'"),
        (["tokenize", "--model=SASRec", "--dataset=tiny"], "model SASRec has no semantic IDs"),
        (["tune", "--dataset=tiny", "--num_samples=0"], "num_samples has to be a positive whole number"),
    ],
)
def test_help_and_mistakes_are_answered_without_pytorch(arguments, message):
    code = f"""
import contextlib, io, sys
from recbole_tiger.cli import main
shown = io.StringIO()
with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown), contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print(shown.getvalue())
{LOADED.replace('"recbole", ', "").replace("'recbole', ", "").replace("'numpy', ", "")}
"""
    *shown, loaded = python(code, *arguments).splitlines()
    assert message in " ".join(" ".join(shown).split())
    assert loaded == "[]"


FORKS = """
import os, sys, traceback
import pandas, ray.tune, scipy.sparse, sklearn, torch, torch.utils.tensorboard  # what takes longest, once
for code in sys.argv[1:]:
    sys.stdout.flush()
    process = os.fork()
    if not process:
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(process, 0)
"""
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="every case is a process of its own: by fork, for speed")

FIRST = [
    "from recbole.quick_start import run_recbole",
    "from recbole.config import Config",
    "from recbole.data import create_dataset",
    "from recbole.trainer import Trainer",
    "from recbole.utils import get_model",
    "from recbole.model.abstract_recommender import SequentialRecommender",
]
KNOWN = """
import sys
sys.argv = ["anything", "--codebook_size=7", "--no_setting=1"]
{imports}
sys.argv = sys.argv[:1]
from recbole.config import Config
from recbole.data import create_dataset, dataset
from recbole.quick_start import objective_function
from recbole.utils import get_model, get_trainer
config = Config(model="TIGER", dataset="ml-100k")
names = [get_model("TIGER"), get_trainer(config["MODEL_TYPE"], "TIGER"), dataset.TIGERDataset]
print(config["codebook_size"], [f"{{one.__module__}}.{{one.__name__}}" for one in names])
"""


@forks
def test_recbole_knows_the_model_in_either_order():
    orders = [pair for first in FIRST for pair in (("import recbole_tiger", first), (first, "import recbole_tiger"))]
    homes = ("model.tiger.TIGER", "training.tiger.TIGERTrainer", "training.dataset.CatalogueDataset")
    names = [f"recbole_tiger.{home}" for home in homes]
    shown = python(FORKS, *(KNOWN.format(imports="\n".join(order)) for order in orders))
    assert shown.splitlines() == [f"256 {names}"] * len(orders)


def test_what_was_imported_from_recbole_before_knows_the_plugin():
    """isort sorts RecBole before this package."""
    names = ["create_dataset", "data_preparation", "load_split_dataloaders"]
    code = f"""
from recbole.data.utils import create_dataset, data_preparation as prepare, load_split_dataloaders
import recbole_tiger
from recbole.data import utils
print([one is getattr(utils, name) and hasattr(one, "__wrapped__") for one, name in zip(
    (create_dataset, prepare, load_split_dataloaders), {names})])
"""
    assert python(code) == "[True, True, True]"


@forks
def test_every_module_can_be_the_first_that_is_imported():
    assert len(MODULES) > 30
    assert python(FORKS, *(f"import {name}" for name in MODULES)) == ""


HIDDEN = """
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec

def find_but(name, path=None, target=None):
    return None if name in {hidden} else find_spec(name, path, target)

PathFinder.find_spec = find_but  # the import system finds no package of these names
"""


def command(*arguments):
    """Code that calls the command line and prints its status and whether it loaded Ray."""
    return f"import sys; from recbole_tiger.cli import main; print(main({list(arguments)}), 'ray' in sys.modules)"


def test_a_run_does_without_ray(tmp_path):
    write_dataset(tmp_path)
    settings = {"data_path": tmp_path, "epochs": 1, "hidden_size": 16, "inner_size": 16, "n_heads": 2, "n_layers": 1}
    call = command("run", "--model=SASRec", "--dataset=tiny", *(f"--{key}={value}" for key, value in settings.items()))
    assert python(call).splitlines()[-1] == "0 False"
    assert python(HIDDEN.format(hidden=["ray"]) + call).splitlines()[-1] == "0 False"


def test_future_warnings_of_recbole_are_not_shown(tmp_path):
    write_dataset(tmp_path)
    columns = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    settings = {**protocol(), **columns, "data_path": str(tmp_path), "epochs": 1, "train_neg_sample_args": None}
    code = f"""
import warnings
from recbole_tiger import run_recbole
run_recbole(model="GRU4Rec", dataset="tiny", config_dict={settings})
warnings.warn("of the script", FutureWarning)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^.*:\d+: FutureWarning.*", done.stderr, re.MULTILINE) == ["<string>:5: FutureWarning: of the script"]


# --- packages that are absent or of another version ---


ABSENT = "RecBole is not installed: pip install --no-deps recbole==1.2.1"


def test_without_recbole_the_error_says_what_to_type():
    hidden = HIDDEN.format(hidden=["recbole"])
    for line in ("from recbole.quick_start import run_recbole", "from recbole_tiger import Recommender"):
        assert python(f"{hidden}import recbole_tiger\n{line}").splitlines()[-1] == f"ModuleNotFoundError: {ABSENT}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--model=TIGER", "--dataset=tiny"],
        ["tokenize", "--dataset=tiny"],
        ["tune", "--dataset=tiny"],
        ["recommend", "--checkpoint=a.pth", "--history=i1"],
        ["download", "--dataset=ml-1m"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_without_recbole_is_one_sentence(arguments):
    code = "import sys; sys.stderr = sys.stdout\n" + HIDDEN.format(hidden=["recbole"]) + command(*arguments)
    assert python(code) == f"recbole-tiger: error: {ABSENT}\n2 False"


def test_another_recbole_is_refused(tmp_path):
    (tmp_path / "recbole").mkdir()
    (tmp_path / "recbole" / "__init__.py").write_text("__version__ = '1.1.1'\n")
    message = "RecBole 1.1.1 is installed, but recbole_tiger works with 1.2: pip install --no-deps recbole==1.2.1"
    path = {"PYTHONPATH": str(tmp_path)}
    assert python("import recbole_tiger, recbole", **path).splitlines()[-1] == f"ImportError: {message}"
    code = "import sys; sys.stderr = sys.stdout\n" + command("run", "--model=TIGER", "--dataset=tiny")
    assert python(code, **path) == f"recbole-tiger: error: {message}\n2 False"


@pytest.mark.parametrize("old", [False, True], ids=["absent", "old"])
def test_tune_without_ray_of_today_is_one_sentence(old, tmp_path):
    """What Ray 2.6.3 lacks stands for it: it cannot be installed beside the one that the other tests need."""
    code = "import sys; sys.stderr = sys.stdout\n"
    if old:
        (tmp_path / "ray" / "tune").mkdir(parents=True)
        (tmp_path / "ray" / "__init__.py").write_text("")
        (tmp_path / "ray" / "tune" / "__init__.py").write_text("")
        (tmp_path / "ray" / "exceptions.py").write_text("class RayError(Exception): pass\n")
    else:
        code += HIDDEN.format(hidden=["ray"])
    shown = python(code + command("tune", "--dataset=tiny"), PYTHONPATH=str(tmp_path)).splitlines()
    assert shown[-1].startswith("2 ")
    reason = "cannot import name 'RunConfig' from 'ray.tune'" if old else "No module named 'ray'"
    assert shown[-2].startswith(f"recbole-tiger: error: tune needs ray[tune]>=2.44, but {reason}")
    assert shown[-2].endswith(": pip install 'ray[tune]>=2.44'")
    assert len(shown) == 2

"""The wheel: what is installed from it, away from the source tree, is whole."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from recbole.config import Config

import recbole_tiger

PROJECT = Path(__file__).resolve().parent.parent

INSTALLED = """
import json
from importlib import metadata, resources
import recbole_tiger
from recbole.config import Config

config = Config(model="TIGER", dataset="ml-100k")
properties = resources.files("recbole_tiger.properties")
files = sorted(str(file.relative_to(properties)) for file in properties.rglob("*.yaml"))
names = ["codebook_size", "text_fields", "load_col", "topk"]
print(json.dumps({
    "file": recbole_tiger.__file__,
    "properties": str(properties),
    "files": files,
    "settings": {name: config[name] for name in names},
    "version": [recbole_tiger.__version__, metadata.version("recbole-tiger")],
}))
"""


def call(*arguments, **options):
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder that a wheel, built from a copy of the project, is installed in."""
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "results", "log*", "saved")
    shutil.copytree(PROJECT, folder / "copy", ignore=ignored)
    python = sys.executable
    call(python, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "copy", cwd=folder)
    (wheel,) = folder.glob("recbole_tiger-*.whl")
    target = folder / "target"
    call(python, "-m", "pip", "install", "--no-deps", "--no-index", f"--target={target}", wheel, cwd=folder)
    shutil.rmtree(folder / "copy")
    return target


def test_installed_wheel_is_whole(installed, tmp_path):
    (tmp_path / "show.py").write_text(INSTALLED)
    output = call(sys.executable, "show.py", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)})
    shown = json.loads(output.splitlines()[-1])
    assert Path(shown["file"]) == installed / "recbole_tiger" / "__init__.py"
    assert Path(shown["properties"]) == installed / "recbole_tiger" / "properties"
    source = PROJECT / "properties"
    assert shown["files"] == sorted(str(file.relative_to(source)) for file in source.rglob("*.yaml"))
    assert "model/TIGER.yaml" in shown["files"]
    assert shown["settings"]["codebook_size"] == 256
    assert shown["settings"]["text_fields"] == ["movie_title", "class", "release_year"]
    # The development installation reads the same files.
    config = Config(model="TIGER", dataset="ml-100k")
    assert shown["settings"] == {name: config[name] for name in shown["settings"]}
    assert shown["version"] == [recbole_tiger.__version__] * 2


def test_parts_of_pages_are_installed(installed):
    folders = [folder / "recbole_tiger" / "report" / "html" for folder in (PROJECT, installed)]
    of_project, of_wheel = ({file.name for file in folder.iterdir() if file.suffix in (".js", ".css")} for folder in folders)
    assert of_project == of_wheel > {"page.css", "page.js"}


def test_installed_command(installed, tmp_path):
    script = installed / "bin" / "recbole-tiger"
    output = call(sys.executable, script, "--version", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)})
    assert output.splitlines()[-1] == recbole_tiger.__version__


def test_version_is_that_of_the_metadata():
    assert recbole_tiger.__version__ == metadata.version("recbole-tiger")

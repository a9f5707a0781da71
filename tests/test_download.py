"""The command download, against a real server on the loopback interface."""

import gzip
import io
import os
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from recbole.data.dataset import Dataset

from benchmarks.originals import served, write_originals, write_published_size
from recbole_tiger.catalogue.datasets import DATASETS, Amazon, Counts
from recbole_tiger.catalogue.download import ATTEMPTS, download_amazon, ensure_dataset, fetch
from recbole_tiger.cli import main
from recbole_tiger.errors import TigerError
from recbole_tiger.files import locked
from recbole_tiger.settings.config import make_config
from tests.test_bad_input import full_disk, limit
from tests.test_command_line import files_under

# Written by hand: what the originals below have to become.
INTERACTIONS = [
    ("A9", "B1", 10),
    ("A3", "B1", 12),
    ("A9", "B2", 9),
    ("A3", "B2", 12),
    ("A9", "B3", 10),
    ("A3", "B4", 11),
]
ITEMS = [
    ("B9", "never reviewed", None, [["Beauty"]]),
    ("B1", "Soap &amp;  towel\n\tset", "L&#39;Acme", [["Home", "Bath"], ["Beauty", "Bath"], ["Beauty", "Soap"]]),
    ("B2", 'The "best" \N{REGISTERED SIGN} soap', None, [["Home", "Bath"], ["Pets"]]),
    ("B3", None, None, [["Beauty", "Hair Care", "Shampoos"]]),
    ("B4", "It's 'asin': 'B1' here", "", []),
]
INTER = """user_id:token	item_id:token	timestamp:float
1	B2	777600
1	B1	864000
1	B3	864128
2	B4	950400
2	B1	1036800
2	B2	1036928
"""
ITEM = """item_id:token	title:token	brand:token	categories:token
B2	"The ""best"" ® soap"		Home > Bath
B1	Soap & towel set	L'Acme	Beauty > Bath
B3			Beauty > Hair Care > Shampoos
B4	It's 'asin': 'B1' here		
"""
SMALL = {"amazon-beauty": Amazon("Beauty", "Beauty", Counts(2, 4, 6))}


@pytest.fixture
def originals(tmp_path):
    folder = tmp_path / "official"
    folder.mkdir()
    write_originals(folder, "amazon-beauty", INTERACTIONS, ITEMS)
    return folder


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder with originals of the published size."""
    folder = tmp_path_factory.mktemp("official")
    write_published_size(folder, "amazon-beauty")
    return folder


@pytest.fixture
def big(tmp_path):
    """A folder with a gzip file of half a megabyte, and its content."""
    folder = tmp_path / "official"
    folder.mkdir()
    content = gzip.compress(random.Random(0).randbytes(500_000), 1)
    (folder / "big.gz").write_bytes(content)
    return folder, content


# --- what the files become ---


@pytest.mark.parametrize("source", ["server", "folder"])
def test_atomic_files(originals, tmp_path, source):
    with served(originals) as (_, url):
        counts = download_amazon("amazon-beauty", "data", url if source == "server" else str(originals), amazon=SMALL)
    assert counts == (2, 4, 6)
    folder = tmp_path / "data" / "amazon-beauty"
    assert {file.name for file in folder.iterdir()} == {"amazon-beauty.inter", "amazon-beauty.item"}
    assert (folder / "amazon-beauty.inter").read_text() == INTER
    assert (folder / "amazon-beauty.item").read_text() == ITEM
    kept = {file.name for file in (tmp_path / "data").rglob("*.gz")}
    assert kept == (set(DATASETS["amazon-beauty"].originals) if source == "server" else set())
    assert folder.stat().st_mode & 0o777 == originals.stat().st_mode & 0o777


@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_real_sequences_come_back(real_data, tmp_path, dataset):
    """Originals that are made of a slice of the prepared files become that slice again, byte for byte."""
    inter = pd.read_csv(real_data / dataset / f"{dataset}.inter", sep="\t", dtype=str)
    inter.columns = ["user", "item", "time"]
    inter["day"] = inter["time"].astype(int) // 86400
    # Within a day the original order is that of the items; where a day was unknown, the prepared files depart from it.
    before = inter.shift()
    departs = (
        (inter["user"] == before["user"]) & (inter["day"] == before["day"]) & (inter["item"] < before["item"].fillna(""))
    )
    inter = inter[~inter["user"].isin(inter["user"][departs]) & (inter["user"].astype(int) < 3000)]
    raw = inter.sort_values("item", kind="stable")
    number = {user: str(i) for i, user in enumerate(raw["user"].unique(), start=1)}
    inter = inter.assign(user=inter["user"].map(number)).sort_values("user", key=lambda u: u.astype(int), kind="stable")
    item_file = real_data / dataset / f"{dataset}.item"
    table = pd.read_csv(item_file, sep="\t", dtype=str, keep_default_na=False)
    lines = {line.split("\t")[0]: line for line in item_file.read_text(encoding="utf-8").splitlines()[1:]}
    order = inter["item"].unique()

    records = [(item, title or None, brand or None, [path.split(" > ")]) for item, title, brand, path in table.to_numpy()]
    write_originals(tmp_path, dataset, raw[["user", "item", "day"]].itertuples(index=False, name=None), records)
    published = Counts(inter["user"].nunique(), len(order), len(inter))
    amazon = {dataset: Amazon(DATASETS[dataset].file, DATASETS[dataset].department, published)}
    download_amazon(dataset, "data", str(tmp_path), amazon=amazon)

    folder = tmp_path / "data" / dataset
    expected = ["\t".join(row) for row in inter[["user", "item", "time"]].itertuples(index=False, name=None)]
    assert (folder / f"{dataset}.inter").read_text().splitlines()[1:] == expected
    expected = [lines[item] for item in order]
    assert (folder / f"{dataset}.item").read_text(encoding="utf-8").splitlines()[1:] == expected
    for kind in ("inter", "item"):
        with open(real_data / dataset / f"{dataset}.{kind}") as prepared, open(folder / f"{dataset}.{kind}") as made:
            assert prepared.readline() == made.readline()


# --- the command ---


def test_command(official, capsys):
    with served(official) as (server, url):
        call = ["download", "--dataset=amazon-beauty", "--data_path=data", f"--source={url}"]
        assert main(call) == 0
        assert "22,363 users, 12,101 items, 198,502 interactions" in capsys.readouterr().out
        asked = len(server.asked)
        before = files_under("data")
        assert main(call) == 0  # nothing is fetched twice
        assert len(server.asked) == asked == 2
    assert files_under("data") == before
    config = make_config("Pop", "amazon-beauty", {"data_path": "data"})
    ensure_dataset(config)


def test_the_same_download_twice_at_once(official, capsys):
    """The second names the first, which ends as if it were alone; as does one that RecBole fetches."""
    with served(official) as (server, url):
        server.pause = 0.5
        call = ["download", "--dataset=amazon-beauty", "--data_path=data", f"--source={url}"]
        first = subprocess.Popen([sys.executable, "-m", "recbole_tiger", *call], stderr=subprocess.PIPE)
        while not list(Path("data").glob("originals/*.part")):
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.05)
        assert main(call) == 2
        message = capsys.readouterr().err
        assert "the download of data/amazon-beauty is running already" in message
        assert f"in process {first.pid} (data/amazon-beauty.lock): wait until it ends" in message
        server.pause = 0
        assert first.wait() == 0
    assert {file.name for file in Path("data").iterdir()} == {"amazon-beauty", "originals"}


def test_a_download_of_recboles_twice_at_once(monkeypatch, capsys):
    monkeypatch.setattr(Dataset, "_get_download_url", lambda self, file, allow_none=False: "http://127.0.0.1:9/mine.zip")
    with locked("data/mine.lock", "this"):
        assert main(["download", "--dataset=mine", "--data_path=data"]) == 2
    assert f"the download of data/mine is running already, in process {os.getpid()} " in capsys.readouterr().err


def test_other_counts_are_refused(originals, capsys):
    assert main(["download", "--dataset=amazon-beauty", "--data_path=data", f"--source={originals}"]) == 2
    message = capsys.readouterr().err
    assert "2 users, 4 items, 6 interactions" in message
    assert "22,363 users, 12,101 items, 198,502 interactions" in message
    assert not list(Path("data").iterdir())


def test_source_is_for_the_amazon_datasets(capsys):
    assert main(["download", "--dataset=ml-100k", "--source=somewhere"]) == 2
    assert "--source is for amazon-beauty" in capsys.readouterr().err


def test_dataset_of_recbole(capsys):
    assert main(["download", "--dataset=ml-100k"]) == 0
    assert "ml-100k: in " in capsys.readouterr().out


def test_broken_download_of_recbole_leaves_nothing(tmp_path, monkeypatch, capsys):
    """A transfer that breaks off, then an archive that is none, then the whole one."""
    (tmp_path / "official").mkdir()
    archive = tmp_path / "official" / "mine.zip"
    monkeypatch.setattr(Dataset, "_get_download_url", lambda self, file, allow_none=False: f"{url}/mine.zip")
    with served(tmp_path / "official") as (server, url):
        for content, faults in ((random.Random(0).randbytes(2**19), [None, "cut"]), (b"no archive", [])):
            archive.write_bytes(content)
            server.faults = faults
            assert main(["download", "--dataset=mine", "--data_path=data"]) == 2
            assert "dataset mine is not at data/mine and could not be fetched" in capsys.readouterr().err
            assert not Path("data/mine").exists()
            assert not list(Path("data").iterdir())
        with zipfile.ZipFile(archive, "w") as made:
            made.writestr("mine.inter", INTER)
        assert main(["download", "--dataset=mine", "--data_path=data"]) == 0
    assert Path("data/mine/mine.inter").read_text() == INTER


@pytest.mark.parametrize("answer", ["n", None], ids=["no", "nobody"])
def test_a_large_dataset_of_recbole_that_nobody_wants(answer, monkeypatch, capsys):
    """RecBole asks before it fetches more than 1 GB."""
    monkeypatch.setattr(Dataset, "_get_download_url", lambda self, file, allow_none=False: "http://127.0.0.1:9/mine.zip")
    monkeypatch.setattr("recbole.data.dataset.dataset.decide_download", lambda url: input("? (y/N)").lower() == "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("" if answer is None else f"{answer}\n"))
    assert main(["download", "--dataset=mine", "--data_path=data"]) == 2
    assert "dataset mine is not at data/mine" in capsys.readouterr().err
    assert not list(Path("data").iterdir())


def test_no_network(monkeypatch, capsys):
    """A server that cannot be reached is no disk without room."""
    monkeypatch.setattr(Dataset, "_get_download_url", lambda self, file, allow_none=False: "http://127.0.0.1:9/mine.zip")
    assert main(["download", "--dataset=mine", "--data_path=data"]) == 2
    message = capsys.readouterr().err
    assert "dataset mine is not at data/mine and could not be fetched" in message
    assert "refused" in message and "make room" not in message
    assert not list(Path("data").iterdir())


def test_unknown_argument(capsys):
    assert main(["download", "--dataset=ml-100k", "--users=5"]) == 2
    assert "unknown argument '--users=5' of download" in capsys.readouterr().err


def test_source_without_the_files(tmp_path, capsys):
    assert main(["download", "--dataset=amazon-beauty", "--data_path=data", f"--source={tmp_path}"]) == 2
    assert f"{tmp_path / 'reviews_Beauty_5.json.gz'} does not exist" in capsys.readouterr().err


def test_run_never_fetches_other_data_of_the_same_name(capsys):
    """RecBole's own list has other files under the names of the published datasets."""
    assert main(["run", "--model=SASRec", "--dataset=amazon-toys-games", "--data_path=data"]) == 2
    message = capsys.readouterr().err
    assert "recbole-tiger download --dataset=amazon-toys-games --data_path=data" in message


def test_run_refuses_other_data_of_the_same_name(originals, capsys):
    download_amazon("amazon-beauty", "data", str(originals), amazon=SMALL)
    assert main(["run", "--model=TIGER", "--dataset=amazon-beauty", "--data_path=data"]) == 2
    message = capsys.readouterr().err
    assert "2 users, 4 items, 6 interactions instead of 22,363 users" in message
    assert main(["download", "--dataset=amazon-beauty", "--data_path=data", f"--source={originals}"]) == 2
    assert "holds another dataset" in capsys.readouterr().err


# --- originals that are not what they should be ---


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{'asin': 'B1', 'title': __import__('os').system('touch ran')}", "line 2 is no record"),
        ("{'asin': 'B1', 'title': 'cut sho", "line 2 is no record"),
        ("['asin': 'B1']", "line 2 is no record"),
        ("{'asin': 'B1', 'title': 7}", "line 2 is no record"),
        ("", "lacks 1 of the items that were reviewed, first B1"),
    ],
)
def test_bad_metadata(originals, tmp_path, line, part):
    write_originals(originals, "amazon-beauty", INTERACTIONS, [item for item in ITEMS if item[0] != "B1"])
    file = originals / "meta_Beauty.json.gz"
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    file.write_bytes(gzip.compress("\n".join([lines[0], line, *lines[1:]]).encode()))
    with pytest.raises(TigerError, match=part):
        download_amazon("amazon-beauty", "data", str(originals), amazon=SMALL)
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "data").iterdir())


def test_bad_review(originals):
    (originals / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(b'{"reviewerID": "A1"}\n'))
    with pytest.raises(TigerError, match=r"reviews_Beauty_5.json.gz, line 1 is no review with reviewerID, asin"):
        download_amazon("amazon-beauty", "data", str(originals), amazon=SMALL)


def test_wrong_originals_from_a_server(originals):
    """The message tells how to go on: without the file it is fetched anew."""
    reviews = originals / "reviews_Beauty_5.json.gz"
    right = reviews.read_bytes()
    reviews.write_bytes(gzip.compress(gzip.decompress(right).splitlines(keepends=True)[0]))
    with served(originals) as (_, url):
        with pytest.raises(TigerError, match=r"data/originals/reviews_Beauty_5.json.gz has 1 users.* remove it to fetch it"):
            download_amazon("amazon-beauty", "data", url, amazon=SMALL)
        reviews.write_bytes(right)
        Path("data/originals/reviews_Beauty_5.json.gz").unlink()
        assert download_amazon("amazon-beauty", "data", url, amazon=SMALL) == (2, 4, 6)


def test_half_of_a_dataset_is_not_there_already(originals):
    download_amazon("amazon-beauty", "data", str(originals), amazon=SMALL)
    Path("data/amazon-beauty/amazon-beauty.item").unlink()
    with pytest.raises(TigerError, match=r"data/amazon-beauty has no amazon-beauty.item: move the folder away"):
        download_amazon("amazon-beauty", "data", str(originals), amazon=SMALL)


# --- a disk without room ---


def test_no_room_for_what_comes(big, tmp_path):
    """The part that fits is kept, and the next call resumes from there."""
    folder, content = big
    with served(folder) as (server, url):
        with (
            limit(300_000),
            pytest.raises(TigerError, match=r"cannot write .*/got.gz.part: .*; make room or"),
        ):
            fetch(f"{url}/big.gz", tmp_path / "got.gz")
        assert not (tmp_path / "got.gz").exists()
        have = (tmp_path / "got.gz.part").stat().st_size
        assert 0 < have <= 300_000
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
        assert server.asked == [None, f"bytes={have}-"]
    assert (tmp_path / "got.gz").read_bytes() == content


@pytest.mark.parametrize("name", ["amazon-beauty.inter", "amazon-beauty.item", "reviews_Beauty_5.json.gz.part.json"])
def test_no_room_for_what_is_made(originals, name):
    with served(originals) as (_, url):
        with full_disk(name, 30), pytest.raises(TigerError, match=rf"cannot write .*data/.*{name}: .*; make room or choose"):
            download_amazon("amazon-beauty", "data", url, amazon=SMALL)
        assert not any(file.name.startswith((".", "amazon-beauty")) for file in Path("data").iterdir())
        download_amazon("amazon-beauty", "data", url, amazon=SMALL)
    assert Path("data/amazon-beauty/amazon-beauty.inter").read_text() == INTER


def test_no_room_for_what_recbole_fetches(tmp_path, monkeypatch, capsys):
    (tmp_path / "official").mkdir()
    with zipfile.ZipFile(tmp_path / "official" / "mine.zip", "w") as made:
        made.writestr("mine.inter", INTER)
    monkeypatch.setattr(Dataset, "_get_download_url", lambda self, file, allow_none=False: f"{url}/mine.zip")
    with served(tmp_path / "official") as (_, url), full_disk("data/mine", 100):
        assert main(["download", "--dataset=mine", "--data_path=data"]) == 2
    assert "error: cannot write data/mine: " in capsys.readouterr().err
    assert not list(Path("data").iterdir())


# --- transfers ---


def test_fetch_whole(big, tmp_path):
    folder, content = big
    with served(folder) as (server, url):
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
    assert (tmp_path / "got.gz").read_bytes() == content
    assert server.asked == [None]
    assert {file.name for file in tmp_path.iterdir()} == {"official", "got.gz"}


def test_fetch_goes_on_within_a_call(big, tmp_path):
    folder, content = big
    with served(folder) as (server, url):
        server.faults = ["cut", "cut"]
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
    half = len(content) // 2
    assert server.asked == [None, f"bytes={half}-", f"bytes={(half + len(content)) // 2}-"]
    assert (tmp_path / "got.gz").read_bytes() == content


def test_fetch_goes_on_in_the_next_call(big, tmp_path):
    folder, content = big
    with served(folder) as (server, url):
        server.faults = ["cut"] * ATTEMPTS
        with pytest.raises(TigerError, match=r"broke off after [\d,]+ bytes .* run the same command again"):
            fetch(f"{url}/big.gz", tmp_path / "got.gz")
        assert not (tmp_path / "got.gz").exists()
        have = (tmp_path / "got.gz.part").stat().st_size
        server.asked.clear()
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
    assert server.asked == [f"bytes={have}-"]
    assert (tmp_path / "got.gz").read_bytes() == content
    assert {file.name for file in tmp_path.iterdir()} == {"official", "got.gz"}


def test_fetch_of_which_all_has_come(big, tmp_path):
    """As a kill leaves it while the file is checked."""
    folder, content = big
    with served(folder) as (server, url):
        broken_off(server, url, tmp_path)
        with open(tmp_path / "got.gz.part", "r+b") as part:
            part.write(content)
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
        assert server.asked == []
    assert (tmp_path / "got.gz").read_bytes() == content
    assert {file.name for file in tmp_path.iterdir()} == {"official", "got.gz"}


def broken_off(server, url, tmp_path):
    server.faults = ["cut"] * ATTEMPTS
    with pytest.raises(TigerError):
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
    server.asked.clear()


def test_fetch_starts_again_where_the_server_knows_no_ranges(big, tmp_path):
    folder, content = big
    with served(folder) as (server, url):
        broken_off(server, url, tmp_path)
        server.faults = ["no ranges"]
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
        assert len(server.asked) == 1
    assert (tmp_path / "got.gz").read_bytes() == content


@pytest.mark.parametrize("length", [600_000, 1000])
def test_fetch_starts_again_where_the_file_has_changed(big, tmp_path, length):
    folder, _ = big
    with served(folder) as (server, url):
        broken_off(server, url, tmp_path)
        changed = gzip.compress(random.Random(1).randbytes(length), 1)
        (folder / "big.gz").write_bytes(changed)
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
        assert server.asked[1:] == [None]
    assert (tmp_path / "got.gz").read_bytes() == changed


def test_fetch_does_not_trust_a_part_that_it_knows_nothing_of(big, tmp_path):
    folder, content = big
    (tmp_path / "got.gz.part").write_bytes(b"something else")
    with served(folder) as (_, url):
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
    assert (tmp_path / "got.gz").read_bytes() == content


def test_fetch_does_not_trust_a_part_whose_note_is_cut_short(big, tmp_path):
    """As a kill left it while notes were written in place; those of today are there whole or not at all."""
    folder, content = big
    (tmp_path / "got.gz.part").write_bytes(b"something else")
    (tmp_path / "got.gz.part.json").write_bytes(b'{"url": ')
    with served(folder) as (server, url):
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
        assert server.asked == [None]
    assert (tmp_path / "got.gz").read_bytes() == content


def test_fetch_less_than_announced(big, tmp_path):
    folder, content = big
    with served(folder) as (server, url):
        server.faults = ["too long"] * 2 * ATTEMPTS
        with pytest.raises(TigerError, match=rf"broke off after {len(content):,} bytes .*100 more expected"):
            fetch(f"{url}/big.gz", tmp_path / "got.gz")
    assert not (tmp_path / "got.gz").exists()


@pytest.mark.parametrize("place", [20, -6])
def test_fetch_of_a_damaged_file(big, tmp_path, place):
    """A byte of the content, or of gzip's checksum at the end, is another."""
    folder, content = big
    spoilt = bytearray(content)
    spoilt[place] ^= 1
    (folder / "big.gz").write_bytes(spoilt)
    with (
        served(folder) as (_, url),
        pytest.raises(TigerError, match=r"damaged, .* it was removed, run the same"),
    ):
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
    assert {file.name for file in tmp_path.iterdir()} == {"official"}


def test_fetch_of_an_absent_file(big, tmp_path):
    with served(big[0]) as (_, url), pytest.raises(TigerError, match=r"small.gz cannot be fetched: the server answers 404"):
        fetch(f"{url}/small.gz", tmp_path / "got.gz")
    assert {file.name for file in tmp_path.iterdir()} == {"official"}


def test_no_server(big, tmp_path):
    with served(big[0]) as (_, url):
        pass
    with pytest.raises(TigerError, match=r"cannot be reached .* check the network, or name a --source"):
        fetch(f"{url}/big.gz", tmp_path / "got.gz")
    assert {file.name for file in tmp_path.iterdir()} == {"official"}

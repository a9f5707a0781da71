"""Made-up original files of the Amazon product data and a server for them, for the tests and ``kills.py``."""

import contextlib
import functools
import gzip
import json
import re
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from recbole_tiger.catalogue.datasets import DATASETS

PIECES = 20


def write_originals(folder, dataset, interactions, items):
    """Write a reviews file and a metadata file.

    Args:
        interactions: (user, item, day) in the order of the file.
        items: (item, title, brand, categories) where the last is a list of paths; None leaves a field out.
    """
    reviews, metadata = (Path(folder) / name for name in DATASETS[dataset].originals)
    with gzip.open(reviews, "wt", encoding="utf-8", compresslevel=1) as stream:
        for user, item, day in interactions:
            stream.write(
                json.dumps({"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": day * 86400}) + "\n"
            )
    with gzip.open(metadata, "wt", encoding="utf-8", compresslevel=1) as stream:
        for item, title, brand, categories in items:
            fields = {
                "title": title,
                "price": 9.99,
                "brand": brand,
                "categories": categories,
                "related": {"also_bought": []},
            }
            record = {"asin": item, **{name: value for name, value in fields.items() if value is not None}}
            stream.write(repr(record) + "\n")


def write_published_size(folder, dataset):
    """Write originals with the published numbers of users, items and interactions of a dataset."""
    users, n_items, n_interactions = DATASETS[dataset].published
    width = -(-n_interactions // users)
    pairs = [(f"A{u}", f"B{(u * 7 + j * 131) % n_items:05d}", 15000 + j) for j in range(width) for u in range(users)]
    items = [
        (f"B{i:05d}", f"Soap &amp; towel no. {i}", "Acme", [[DATASETS[dataset].department, "Soap"]]) for i in range(n_items)
    ]
    write_originals(folder, dataset, pairs[:n_interactions], items)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; supports ranges, unlike Python's own server, and can misbehave.

    ``server.faults`` is a list with what to do on the next requests, by name; ``server.asked`` the ranges asked for;
    ``server.pause`` the seconds between pieces of a file, of which there are ``PIECES``.
    """

    def log_message(self, *args):
        """Log nothing."""

    def do_GET(self):
        """Answer a request."""
        file = Path(self.translate_path(self.path))
        fault = self.server.faults.pop(0) if self.server.faults else None
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        start = int(re.match(r"bytes=(\d+)-", asked).group(1)) if asked and fault != "no ranges" else 0
        if asked and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{file.stat().st_mtime_ns}"')
        self.send_header("Content-Length", len(content) - start + (100 if fault == "too long" else 0))
        self.end_headers()
        end = (start + len(content)) // 2 if fault == "cut" else len(content)
        size = -(-len(content) // PIECES) if self.server.pause else len(content)
        with contextlib.suppress(ConnectionError):  # a client was killed
            for begin in range(start, end, size):
                self.wfile.write(content[begin : min(begin + size, end)])
                time.sleep(self.server.pause)


@contextlib.contextmanager
def served(folder):
    """Run a server for the folder on the loopback interface; yield the server and its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.faults, server.asked, server.pause = [], [], 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()

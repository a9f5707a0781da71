"""The page of semantic IDs: a treemap of the codes, the items under a node, search, and usage and collisions by level."""

from collections import Counter

import numpy as np

from recbole_tiger.report.html.page import number, write_page

# A larger catalogue is cut down to this many drawn items: 5 MB.
MOST_ITEMS = 20_000
# Most characters of a title.
LONGEST = 120
# Columns of the item file that can colour the items; the first one present is used.
COLUMNS = ("categories", "category", "genres", "genre", "class")
# Separator of category paths like "Beauty > Makeup > Nails".
PATH = " > "
# Number of categories with their own colour.
COLOURED = 9


def write_semantic_ids_page(file, title, catalogue):
    """Write the page of a catalogue.

    Args:
        file: path of the page.
        title: its title.
        catalogue: a :class:`~recbole_tiger.catalogue.catalogue.Catalogue`.
    """
    ids = catalogue.semantic_ids
    rows = np.arange(len(ids.items))
    if len(rows) > MOST_ITEMS:
        rows = np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST_ITEMS])
    column = next((name for name in COLUMNS if any(catalogue.columns.get(name, []))), None)
    categories, of_item = [], None
    if column is not None:
        categories, of_item = categories_of(catalogue.columns[column])
    statistics = ids.statistics()
    data = {
        "items": [ids.items[row] for row in rows],
        "titles": [shortened(catalogue.titles[row]) for row in rows],
        "codes": ids.codes[rows].tolist(),
        "column": column,
        "categories": categories,
        "category": None if of_item is None else [of_item[row] for row in rows],
        "statistics": {**statistics, "collision_rate": number(statistics["collision_rate"])},
        "sharing": [_sharing(ids.codes[:, : level + 1]) for level in range(ids.depth)],
        "usage": [np.sort(np.unique(codes, return_counts=True)[1])[::-1].tolist() for codes in ids.codes[:, : ids.depth].T],
        "groups": _groups(ids.codes[:, : ids.depth]),
    }
    write_page(file, title, "semantic_ids.js", data)


def shortened(title):
    """Shorten a title to at most LONGEST characters."""
    return title if len(title) <= LONGEST else title[: LONGEST - 1] + "…"


def categories_of(values):
    """Find the most common categories of items, at the first step at which the items' category paths differ.

    Args:
        values: list of category paths, like "Beauty > Makeup > Nails"; "" for an item without categories.

    Returns:
        names (at most COLOURED, the most common first, then "other" for the rest); list of each item's index in names.
    """
    paths = [value.split(PATH) for value in values]
    step = 0
    while len({path[step] for path in paths if len(path) > step and path[step]}) == 1:
        step += 1
    found = [path[step] if len(path) > step else "" for path in paths]
    names = [name for name, _ in Counter(filter(None, found)).most_common(COLOURED)]
    if not names:  # all paths are the same
        return ["other"], [0] * len(values)
    place = {name: i for i, name in enumerate(names)}
    return [*names, "other"], [place.get(name, len(names)) for name in found]


def _sharing(prefixes):
    """Share of the items that share a prefix with another item."""
    _, counts = np.unique(prefixes, axis=0, return_counts=True)
    return number(counts[counts > 1].sum() / counts.sum())


def _groups(codes):
    """Count the groups of items with the same codes by size: a list of pairs of size and number of groups."""
    _, counts = np.unique(codes, axis=0, return_counts=True)
    sizes, numbers = np.unique(counts, return_counts=True)
    return np.column_stack([sizes, numbers]).tolist()

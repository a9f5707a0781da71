"""The frozen table of semantic IDs: codes, collision level, statistics, save and load."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from recbole_tiger.errors import TigerError, named
from recbole_tiger.files import read_lines, whole_file

# Maximal number of digits of a code in a file: a level has weights for every code up to the largest.
MAX_DIGITS = 7


def add_collision_level(codes):
    """Number the items that share all codes (paper section 3.1).

    Args:
        codes: int array [n_items, depth].

    Returns:
        int array [n_items, depth + 1]; the last column counts 0, 1, ... within each group of equal codes, in item order.
    """
    order = np.lexsort(codes.T[::-1])
    ranked = codes[order]
    starts = np.ones(len(codes), dtype=bool)
    starts[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    first = np.flatnonzero(starts)
    number = np.arange(len(codes)) - np.repeat(first, np.diff(np.append(first, len(codes))))
    level = np.empty(len(codes), dtype=codes.dtype)
    level[order] = number
    return np.column_stack([codes, level])


@dataclass(frozen=True)
class SemanticIDs:
    """Semantic IDs of a catalogue.

    Attributes:
        items: item tokens, a tuple of n_items strings.
        codes: int64 array [n_items, depth + 1] with distinct rows; the last column is the collision level.
    """

    items: tuple
    codes: np.ndarray

    def __post_init__(self):
        object.__setattr__(self, "items", tuple(self.items))
        codes = np.array(self.codes, dtype=np.int64)
        codes.setflags(write=False)
        object.__setattr__(self, "codes", codes)
        if codes.ndim != 2 or len(codes) != len(self.items):
            raise TigerError(f"codes of the shape {codes.shape} do not fit {len(self.items)} items: one row per item")
        if not len(codes) or codes.shape[1] < 2:
            raise TigerError("semantic IDs need at least one item, one code and the collision level")
        if (codes < 0).any():
            raise TigerError(f"negative codes: {named(np.array(self.items)[(codes < 0).any(axis=1)])}")
        distinct, counts = np.unique(codes, axis=0, return_counts=True)
        if len(distinct) < len(codes):
            twin = distinct[counts > 1][0]
            twins = np.array(self.items)[(codes == twin).all(axis=1)]
            raise TigerError(
                f"{len(codes) - len(distinct)} items repeat the ID of another, first {tuple(twin.tolist())}: "
                f"{named(twins)}; number the items of such a group in the last column"
            )

    @property
    def depth(self):
        """Number of levels without the collision level."""
        return self.codes.shape[1] - 1

    @cached_property
    def _item_of(self):
        return dict(zip(map(tuple, self.codes.tolist()), self.items, strict=True))

    def item_of(self, code_tuple):
        """The token of the item with the given semantic ID.

        Raises:
            KeyError: no item has this ID.
        """
        return self._item_of[tuple(int(code) for code in code_tuple)]

    def statistics(self):
        """How well the codes tell items apart.

        Returns:
            dict with lists of one value per level (without the collision level): ``used_codes``, ``perplexity`` (2 to the
            entropy of the codes in bits) and ``distinct_prefixes``; and with numbers: ``items``, ``distinct_ids`` (without
            the collision level), ``collision_rate`` (share of items that share all codes with another), ``largest_group``.
        """
        depth = self.depth
        used, perplexity, prefixes = [], [], []
        for level in range(depth):
            counts = np.bincount(self.codes[:, level])
            share = counts[counts > 0] / counts.sum()
            used.append(int((counts > 0).sum()))
            perplexity.append(float(np.exp(-(share * np.log(share)).sum())))
            prefixes.append(len(np.unique(self.codes[:, : level + 1], axis=0)))
        _, groups = np.unique(self.codes[:, :depth], axis=0, return_counts=True)
        return {
            "items": len(self.items),
            "used_codes": used,
            "perplexity": [round(value, 2) for value in perplexity],
            "distinct_prefixes": prefixes,
            "distinct_ids": len(groups),
            "collision_rate": round(float(groups[groups > 1].sum() / len(self.items)), 4),
            "largest_group": int(groups.max()),
        }

    def reordered(self, items, source):
        """The same IDs in the order of ``items``.

        Args:
            source: origin of the IDs, for the message.

        Raises:
            TigerError: ``items`` and the items of the table are different sets.
        """
        row = {item: i for i, item in enumerate(self.items)}
        missing = [item for item in items if item not in row]
        if missing:
            raise TigerError(f"{source} lacks {len(missing)} items of the dataset: {named(missing)}; add their IDs")
        unknown = set(self.items) - set(items)
        if unknown:
            raise TigerError(
                f"{source} has {len(unknown)} items that the dataset lacks: {named(sorted(unknown))}; remove them"
            )
        return SemanticIDs(items, self.codes[[row[item] for item in items]])

    def save(self, file):
        """Write a tab-separated table: ``item code_1 ... code_depth collision``.

        Raises:
            TigerError: the file cannot be written, or an item has a tab.
        """
        if tabs := [item for item in self.items if "\t" in item]:
            raise TigerError(
                f"{len(tabs)} items have a tab, which separates the columns of {file}: {named(tabs)}; rename them"
            )
        columns = [f"code_{level + 1}" for level in range(self.depth)]
        with whole_file(file) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as stream:
            stream.write("\t".join(["item", *columns, "collision"]) + "\n")
            for item, codes in zip(self.items, self.codes.tolist(), strict=True):
                stream.write(f"{item}\t" + "\t".join(map(str, codes)) + "\n")

    @classmethod
    def load(cls, file):
        """Read a table written by :meth:`save` or by hand.

        Raises:
            TigerError: a row has a wrong length or a code is not a non-negative integer (with the line number), or an ID or
                an item repeats.
        """
        path = Path(file)
        if not path.is_file():
            raise TigerError(f"semantic-ID file {path} does not exist")
        try:
            lines = read_lines(path)
        except UnicodeDecodeError as error:
            raise TigerError(f"{path} is not a text file: expected a tab-separated table of semantic IDs") from error
        columns = lines[0].split("\t") if lines else []
        # Without the column "collision" the last code would be taken for the collision level.
        if not columns or columns[0] != "item" or columns[-1] != "collision":
            raise TigerError(f"{path}: line 1 has to be the header: item, code_1, ..., collision, separated by tabs")
        width = len(columns)
        items, rows = [], []
        for number, line in enumerate(lines[1:], start=2):
            item, *codes = line.split("\t")
            if len(codes) != width - 1:
                raise TigerError(f"{path}, line {number}: {len(codes)} codes where the header has {width - 1}")
            if not all(code.isdecimal() and code.isascii() and len(code) <= MAX_DIGITS for code in codes):
                raise TigerError(
                    f"{path}, line {number}: codes have to be non-negative integers of at most {MAX_DIGITS} digits, "
                    f"not {' '.join(codes)}"
                )
            items.append(item)
            rows.append([int(code) for code in codes])
        if len(set(items)) < len(items):
            twice = [item for item, times in Counter(items).items() if times > 1]
            raise TigerError(f"{path}: items with more than one row: {named(twice)}")
        try:
            return cls(items, np.array(rows, dtype=np.int64).reshape(len(rows), width - 1))
        except TigerError as error:
            raise TigerError(f"{path}: {error}") from error

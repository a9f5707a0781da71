"""Evaluation without the items that users already have (``exclude_history``)."""

from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction

from recbole_tiger.catalogue.download import DAY
from recbole_tiger.catalogue.item_text import history_field
from recbole_tiger.model import MODELS
from recbole_tiger.model.base import LEFT_OUT

# Times have the resolution of a day if at least this share of them is midnight; the others number interactions of a day.
MIDNIGHTS = 0.1


def ordinals(users):
    """Number of earlier rows of the same user, for each row: int array [rows].

    Args:
        users: int array [rows].
    """
    order = users.argsort(kind="stable")
    row = np.arange(len(users))
    opens = np.append(True, users[order][1:] != users[order][:-1])[: len(users)]
    found = np.empty_like(row)
    found[order] = row - np.maximum.accumulate(np.where(opens, row, 0))
    return found


def padded(rows, items, n_rows):
    """Table of the items of each row: int tensor [n_rows, maximal number of items], padded with zeros.

    Args:
        rows, items: int arrays [n]; ``rows`` is ascending.
    """
    counts = np.bincount(rows, minlength=n_rows)
    table = np.zeros((n_rows, counts.max(initial=0)), dtype=np.int64)
    table[rows, np.arange(len(rows)) - (counts.cumsum() - counts)[rows]] = items
    return torch.from_numpy(table)


class KnownItems:
    """The items that a user has before each row of the data: the row's history, and the targets of the user's earlier rows.

    Rows are ordered by part, then as in the dataset of the part. A row of RecBole's holds the last MAX_ITEM_LIST_LENGTH
    items only, but all rows of a user together hold all of its items. Tables are computed at first use.

    Args:
        config: RecBole's Config. parts: datasets of training, validation and test.
    """

    def __init__(self, config, parts):
        self.config, self.parts = config, parts
        self.starts = np.cumsum([0, *map(len, parts)])

    def _columns(self, name):
        return [part.inter_feat[name].numpy() for part in self.parts]

    @cached_property
    def table(self):
        """Three int arrays: where the items of each user begin, [users + 1]; the items; since when the user has each item.

        The last is twice the number of the first row with the item, plus one if the item is its target. The number of a row
        is the start of its part plus the number of the user's earlier rows in the part.
        """
        dataset = self.parts[0]
        columns = self._columns(dataset.uid_field)
        users = np.concatenate(columns)
        numbers = np.concatenate([start + ordinals(column) for start, column in zip(self.starts, columns, strict=False)])
        entries = [(users, np.concatenate(self._columns(dataset.iid_field)), 2 * numbers + 1)]
        if history_field(self.config) in dataset.inter_feat:
            # The items of a user that are never a target are the history of its first row; in pre-split files, of any row.
            first = np.unique(users, return_index=True)[1]
            rows = np.arange(len(users)) if self.config["benchmark_filename"] else np.sort(first)
            for start, histories in zip(self.starts, self._columns(history_field(self.config)), strict=False):
                chosen = rows[(rows >= start) & (rows < start + len(histories))]
                row, column = histories[chosen - start].nonzero()
                entries.append((users[chosen[row]], histories[chosen[row] - start, column], 2 * numbers[chosen[row]]))
        user, item, since = (np.concatenate(arrays) for arrays in zip(*entries, strict=True))
        order = np.lexsort((since, item, user))
        user, item, since = user[order], item[order], since[order]
        new = np.append(True, (user[1:] != user[:-1]) | (item[1:] != item[:-1]))[: len(user)]
        user, item, since = user[new], item[new], since[new]
        return np.searchsorted(user, np.arange(dataset.user_num + 1)), item, since

    def before(self, users, numbers):
        """The items that users have before rows with the given numbers.

        Args:
            users: int array [n]. numbers: int array [n], or one number for all.

        Returns:
            row, item: int arrays of pairs; the items of a row are distinct.
        """
        first, items, since = self.table
        counts = first[users + 1] - first[users]
        rows = np.repeat(np.arange(len(users)), counts)
        place = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts) + first[users][rows]
        known = since[place] <= 2 * np.broadcast_to(numbers, len(users))[rows]
        return rows[known], items[place[known]]

    def later_day(self, users):
        """Whether the test target of each user is of a later day than all earlier interactions of the user.

        Args:
            users: int array [n] of users with one test target.

        Returns:
            bool array [n]; None if times do not have the resolution of a day, or a user has no earlier interaction.
        """
        time = self.config["TIME_FIELD"]
        if any(time not in part.inter_feat for part in self.parts):
            return None
        ids, times = self._columns(self.parts[0].uid_field), [column.astype(float) for column in self._columns(time)]
        if (np.concatenate(times) % DAY == 0).mean() < MIDNIGHTS:
            return None
        before, test = np.full(self.parts[0].user_num, -np.inf), np.zeros(self.parts[0].user_num)
        np.maximum.at(before, np.concatenate(ids[:-1]), np.concatenate(times[:-1]))
        test[ids[-1]] = times[-1]
        return None if np.isinf(before[users]).any() else test[users] // DAY > before[users] // DAY


class LeaveOut:
    """A ``collate_fn`` for loaders of validation or test data, which leaves out the items that users already have.

    In full ranking, RecBole's trainers get these items as the history to mask, and models of MODELS also get them as the
    field LEFT_OUT, an int tensor [batch, n] of distinct items, padded with zeros. In sampled evaluation they are removed
    from the sampled items. A target that its user already has is left out, too, and counts as a miss.

    Args:
        loader: RecBole's loader. known: a :class:`KnownItems`. part: 1 for validation, 2 for test.
        on: whether items are left out; otherwise batches are RecBole's.
    """

    def __init__(self, loader, known, part, on):
        self.collate, self.loader, self.known, self.on = loader.collate_fn, loader, known, on
        self.part, self.start = part, known.starts[part]

    @cached_property
    def numbers(self):
        """Numbers of the loader's rows, as in :attr:`KnownItems.table`."""
        dataset = self.loader._dataset
        return self.start + ordinals(dataset.inter_feat[dataset.uid_field].numpy())

    def __call__(self, index):
        """The batch of the rows, or users, of an index."""
        batch = self.collate(index)
        if not self.on:
            return batch
        return self._full(np.array(index), *batch) if _is_full(self.loader) else self._sampled(np.array(index), *batch)

    def _full(self, index, interaction, masked, positive_u, positive_i):
        sequential = self.loader.is_sequential
        users = interaction[self.loader.uid_field].numpy()
        rows, items = self.known.before(users, self.numbers[index] if sequential else self.start)
        if self.loader.config["model"] in MODELS:
            interaction.update(Interaction({LEFT_OUT: padded(rows, items, len(users))}))
        left_out = torch.from_numpy(rows), torch.from_numpy(items)
        if masked is not None:
            left_out = tuple(map(torch.cat, zip(masked, left_out, strict=True)))
        return interaction, left_out, positive_u, positive_i

    def _sampled(self, index, interaction, rows, positive_u, positive_i):
        known_rows, known_items = self.known.before(self.loader.uid_list[index], self.start)
        n_items = self.loader._dataset.item_num
        pairs = rows.numpy() * n_items + interaction[self.loader.iid_field].numpy()
        kept = torch.from_numpy(np.flatnonzero(~np.isin(pairs, known_rows * n_items + known_items)))
        return interaction[kept], rows[kept], positive_u, positive_i


def _is_full(loader):
    return isinstance(loader, FullSortEvalDataLoader)


def prepare_evaluation(config, train_data, valid_data, test_data):
    """Give loaders of validation and test data a :class:`LeaveOut`; ``exclude_history`` turns it on."""
    known = KnownItems(config, [data._dataset for data in (train_data, valid_data, test_data)])
    for part, data in ((1, valid_data), (2, test_data)):
        data.collate_fn = LeaveOut(data, known, part, bool(config["exclude_history"]))


@contextmanager
def leaving_out(loader, on):
    """Turn leaving out items on or off within a context, for a loader from :func:`prepare_evaluation`."""
    before, loader.collate_fn.on = loader.collate_fn.on, on
    try:
        yield
    finally:
        loader.collate_fn.on = before


def copy_leave_out(loader, whole):
    """Give a loader of a subset of the users the settings of the loader of all users; returns the former."""
    collate = whole.collate_fn
    loader.collate_fn = LeaveOut(loader, collate.known, collate.part, collate.on)
    return loader

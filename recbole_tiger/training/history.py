"""Evaluation without what users have already: which items these are before each target, and loaders that leave them out."""

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

# Times are by the day where at least this share of them is midnight; the others number the interactions of a day.
BY_DAY = 0.1


def ordinals(users):
    """How many rows of the same user come before each row: int array [rows].

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
    """Items of rows side by side: int tensor [n_rows, most items], padded with zeros.

    Args:
        rows, items: int arrays [n], the former ascending.
    """
    counts = np.bincount(rows, minlength=n_rows)
    table = np.zeros((n_rows, counts.max(initial=0)), dtype=np.int64)
    table[rows, np.arange(len(rows)) - (counts.cumsum() - counts)[rows]] = items
    return torch.from_numpy(table)


class Known:
    """Which items a user has before each row of the data: those of its history and the targets of the user's rows before it.

    Rows are in the order of their parts, and within a part in that of its dataset; RecBole's rows of sequences hold the last
    MAX_ITEM_LIST_LENGTH items alone, and all rows together hold all. Nothing is computed before it is asked for.

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
        """Where each user's items begin, int array [users + 1]; the items; and since when: twice the number of a row, and
        one more where they are its target. Rows of a user are numbered by what comes before them in their part.
        """
        dataset = self.parts[0]
        columns = self._columns(dataset.uid_field)
        users = np.concatenate(columns)
        numbers = np.concatenate([start + ordinals(own) for start, own in zip(self.starts, columns, strict=False)])
        entries = [(users, np.concatenate(self._columns(dataset.iid_field)), 2 * numbers + 1)]
        if history_field(self.config) in dataset.inter_feat:
            # The history of a user's first row is what is no target; pre-split files may have any.
            first = np.unique(users, return_index=True)[1]
            rows = np.arange(len(users)) if self.config["benchmark_filename"] else np.sort(first)
            for start, histories in zip(self.starts, self._columns(history_field(self.config)), strict=False):
                own = rows[(rows >= start) & (rows < start + len(histories))]
                row, column = histories[own - start].nonzero()
                entries.append((users[own[row]], histories[own[row] - start, column], 2 * numbers[own[row]]))
        user, item, since = (np.concatenate(arrays) for arrays in zip(*entries, strict=True))
        order = np.lexsort((since, item, user))
        user, item, since = user[order], item[order], since[order]
        new = np.append(True, (user[1:] != user[:-1]) | (item[1:] != item[:-1]))[: len(user)]
        user, item, since = user[new], item[new], since[new]
        return np.searchsorted(user, np.arange(dataset.user_num + 1)), item, since

    def before(self, users, numbers):
        """What users have before rows of these numbers.

        Args:
            users: int array [n]; numbers: int array [n], or one for all.

        Returns:
            row, item: int arrays; for each of the n rows its items, different ones.
        """
        first, items, since = self.table
        counts = first[users + 1] - first[users]
        rows = np.repeat(np.arange(len(users)), counts)
        place = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts) + first[users][rows]
        known = since[place] <= 2 * np.broadcast_to(numbers, len(users))[rows]
        return rows[known], items[place[known]]

    def later_day(self, users):
        """Whether the test targets of users are of a later day than all that they have before.

        Args:
            users: int array [n], of users with one test target.

        Returns:
            bool array [n], or None where times are not by the day or a user has nothing before.
        """
        time = self.config["TIME_FIELD"]
        if any(time not in part.inter_feat for part in self.parts):
            return None
        ids, times = self._columns(self.parts[0].uid_field), [column.astype(float) for column in self._columns(time)]
        if (np.concatenate(times) % DAY == 0).mean() < BY_DAY:
            return None
        before, own = np.full(self.parts[0].user_num, -np.inf), np.zeros(self.parts[0].user_num)
        np.maximum.at(before, np.concatenate(ids[:-1]), np.concatenate(times[:-1]))
        own[ids[-1]] = times[-1]
        return None if np.isinf(before[users]).any() else own[users] // DAY > before[users] // DAY


class LeaveOut:
    """The ``collate_fn`` of a loader of validation or test data: RecBole's, and where ``on``, what users have is left out.

    In full ranking it is given to RecBole's trainers as the history to mask, and to models of MODELS also as the field
    LEFT_OUT, int tensor [batch, n] of different items, padded with zeros. In sampled evaluation it is left out of what is
    drawn. A target that its user has already is left out, too, and so a miss.

    Args:
        loader: RecBole's. known: a :class:`Known`. part: 1 for validation, 2 for test.
    """

    def __init__(self, loader, known, part, on):
        self.collate, self.loader, self.known, self.on = loader.collate_fn, loader, known, on
        self.part, self.start = part, known.starts[part]

    @cached_property
    def numbers(self):
        """Of the loader's rows, as those of :class:`Known`."""
        dataset = self.loader._dataset
        return self.start + ordinals(dataset.inter_feat[dataset.uid_field].numpy())

    def __call__(self, index):
        """A batch of the rows, or users, of an index."""
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
    """Let loaders of validation and test data leave out what users have, where ``exclude_history`` asks for it."""
    known = Known(config, [data._dataset for data in (train_data, valid_data, test_data)])
    for part, data in ((1, valid_data), (2, test_data)):
        data.collate_fn = LeaveOut(data, known, part, bool(config["exclude_history"]))


@contextmanager
def leaving_out(loader, on):
    """Let a loader of :func:`prepare_evaluation` leave out what users have, or not, for a while."""
    before, loader.collate_fn.on = loader.collate_fn.on, on
    try:
        yield
    finally:
        loader.collate_fn.on = before


def with_fewer_rows(loader, whole):
    """Let a loader of some users' rows leave out what that of all leaves out."""
    own = whole.collate_fn
    loader.collate_fn = LeaveOut(loader, own.known, own.part, own.on)
    return loader

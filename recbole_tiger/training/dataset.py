"""CatalogueDataset: RecBole's sequential dataset with a catalogue of semantic IDs."""

from dataclasses import dataclass

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_tiger.catalogue.catalogue import make_catalogue
from recbole_tiger.catalogue.download import ensure_dataset
from recbole_tiger.catalogue.item_text import (
    check_interactions,
    header,
    history_field,
    interaction_files,
    item_file,
    text_columns,
)
from recbole_tiger.errors import TigerError
from recbole_tiger.model import MODELS

# Elements of the [users, items] score matrix of an evaluation batch, where one is needed: 64 MB.
SCORE_MATRIX = 2**24
# Users beyond which a larger evaluation batch gains no speed.
MOST_USERS, GPU_MOST_USERS = 512, 4096


def text_load_col(config, text_needed=True):
    """The columns that every model loads where ``load_col`` is not set: ids, time and, where it is there, item text.

    Items without interactions join the catalogue by it, so models that are compared have to load the same.

    Args:
        text_needed: whether there has to be item text.

    Raises:
        TigerError: a file or a column is missing.
    """
    last = history_field(config) if config["benchmark_filename"] else config["TIME_FIELD"]
    needed = [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"], last]
    for file in interaction_files(config):
        if not file.is_file():
            raise TigerError(f"dataset {config['dataset']} has no interaction file: {file} does not exist")
        fields = header(file, config)
        absent = [name for name in needed if name not in fields]
        if absent:
            times = (
                f"; where there are no times, add running numbers as {last}:float, in the order of the interactions"
                if absent[-1] == config["TIME_FIELD"]
                else ""
            )
            raise TigerError(
                f"{file} has no column {', '.join(absent)}: it has {', '.join(fields)}; name yours by --USER_ID_FIELD=..., "
                f"--ITEM_ID_FIELD=... and --TIME_FIELD=...{times}"
            )
    columns = text_columns(config, text_needed)
    items = {"item": [config["ITEM_ID_FIELD"], *columns]} if item_file(config).is_file() else {}
    return {"inter": needed, **items}


def check_aliases(config):
    """Refuse pre-split files whose histories would have other ids than the items, for any model of sequences.

    Raises:
        TigerError: ``alias_of_item_id`` lacks their column.
    """
    histories, sequential = history_field(config), config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    if sequential and config["benchmark_filename"] and histories not in (config["alias_of_item_id"] or []):
        raise TigerError(
            f"pre-split files hold histories in {histories}, which has to share the ids of {config['ITEM_ID_FIELD']}: "
            f"set --alias_of_item_id=[{histories}]"
        )


class Rows(Interaction):
    """RecBole's Interaction, but an index becomes a tensor once instead of once a column, which is where its time goes."""

    def __getitem__(self, index):
        if isinstance(index, list | np.ndarray) and len(index):
            index = torch.as_tensor(index)
        if not isinstance(index, torch.Tensor):
            return super().__getitem__(index)
        return Rows({name: values[index] for name, values in self.interaction.items()})


class CatalogueDataset(SequentialDataset):
    """Rows as RecBole's SequentialDataset makes them, and the items' semantic IDs.

    Attributes:
        catalogue: a :class:`~recbole_tiger.catalogue.catalogue.Catalogue`.
    """

    @property
    def _model(self):
        return MODELS[self.config["model"]]

    def _load_data(self, token, dataset_path):
        ensure_dataset(self.config)
        dataset_path = self.config["data_path"]  # of a mixture, which may just have been made
        if self.config["load_col"] is None:
            self.config["load_col"] = text_load_col(self.config, self._model.needs_text(self.config))
        check_aliases(self.config)
        check_interactions(self.config)
        try:
            super()._load_data(token, dataset_path)
        except ValueError as error:
            if "convert" not in str(error):  # as pandas says of a value that is not of its column's type
                raise
            raise TigerError(f"{dataset_path}: {error}; mend the value or the type in the header") from error
        if self.benchmark_filename_list is not None:
            histories = history_field(self.config)
            empty = int((self.inter_feat[histories].str.len() == 0).sum())
            if empty:
                raise TigerError(f"{empty} rows of the pre-split files have an empty history ({histories}): leave them out")

    def _data_processing(self):
        super()._data_processing()
        items = self.field2id_token[self.iid_field][1:].tolist()
        if self.config["eval_batch_size"] is None:
            most = GPU_MOST_USERS if self.config["device"].type == "cuda" else MOST_USERS
            if self._model.needs_scores(self.config):
                most = min(most, max(1, SCORE_MATRIX // len(items)))
            # Sampled evaluation (uni100, pop100) counts rows: a user's target and the items sampled beside it.
            modes = self.config["eval_args"]["mode"].values()
            sampled = min(int(mode[3:]) if mode[:3] in ("uni", "pop") else 0 for mode in modes)
            self.config["eval_batch_size"] = most * (1 + sampled)
        self._model.check_sizes(self.config, len(items))
        self.catalogue = make_catalogue(self.config, items, self._model.needs_embeddings(self.config))

    def data_augmentation(self):
        """One row per prefix, as RecBole makes them, without a loop over rows."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        users = self.inter_feat[self.uid_field].numpy()
        row = np.arange(len(users))
        opens = np.append(True, users[1:] != users[:-1])
        start = np.maximum.accumulate(np.where(opens, row, 0))
        target = row[~opens]
        first = np.maximum(start[target], target - self.max_item_list_len)
        length = torch.from_numpy(target - first)
        column = torch.arange(self.max_item_list_len)
        inside = column < length.unsqueeze(1)
        place = (torch.from_numpy(first).unsqueeze(1) + column) * inside
        rows = Rows(self.inter_feat.interaction)[target]
        lists = {self.item_list_length_field: length}
        for field in self.inter_feat:
            if field != self.uid_field:
                values = self.inter_feat[field][place]
                mask = inside.view(*inside.shape, *[1] * (values.dim() - 2))
                lists[getattr(self, f"{field}_list_field")] = values * mask
        rows.update(Interaction(lists))
        self.inter_feat = rows


@dataclass(frozen=True)
class Windows:
    """Stretches of users' histories to train on, sorted by number of targets and length.

    Attributes:
        items: int64 tensor [n, MAX_ITEM_LIST_LENGTH + 1], padded with zeros on the left.
        n_targets: int64 tensor [n]; the last so many items of a window are targets.
        lengths: int64 tensor [n] of items in a window.
        users: int64 tensor [n].
    """

    items: torch.Tensor
    n_targets: torch.Tensor
    lengths: torch.Tensor
    users: torch.Tensor

    def to(self, device):
        """The same with items and users on ``device``; what shapes follow from stays on the host, which need not wait."""
        return Windows(self.items.to(device), self.n_targets, self.lengths, self.users.to(device))

    def batches(self, n_targets, generator):
        """Indices of the windows of each batch, in random order.

        Windows are shuffled among those of the same shape and cut into batches of about ``n_targets`` targets; where the
        cuts fall does not depend on the shuffle, so every epoch has the same number of batches.
        """
        shuffled = torch.randperm(len(self.items), generator=generator)
        shape = (self.n_targets * (self.items.shape[1] + 1) + self.lengths)[shuffled]
        order = shuffled[shape.argsort(stable=True)]
        batch = (self.n_targets[order].cumsum(0) - 1) // n_targets
        batches = order.split(torch.unique_consecutive(batch, return_counts=True)[1].tolist())
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def training_windows(dataset, one_target):
    """Windows over the rows of a training dataset that count every row's target once.

    Args:
        dataset: RecBole's dataset of training rows (history, length, target).
        one_target: a window per row (the paper's way), or else all prefixes of a user at once; a sequence longer than
            MAX_ITEM_LIST_LENGTH + 1 items is then cut into windows that overlap by half, in which a target sees between half
            of MAX_ITEM_LIST_LENGTH and all of it.

    Returns:
        Windows.
    """
    rows, config = dataset.inter_feat, dataset.config
    longest = config["MAX_ITEM_LIST_LENGTH"]
    # A split by time over all users leaves the rows of one user apart.
    order = rows[dataset.uid_field].numpy().argsort(kind="stable")
    targets = rows[dataset.iid_field].numpy()[order]
    users = rows[dataset.uid_field].numpy()[order]
    lengths = rows[config["ITEM_LIST_LENGTH_FIELD"]].numpy()[order]
    histories = rows[history_field(config)].numpy()[order]
    lengths = np.minimum(lengths, histories.shape[1])
    # Align on the right: [..., history, target].
    place = lengths[:, None] - longest + np.arange(longest)
    aligned = np.where(place >= 0, np.take_along_axis(histories, place.clip(0), axis=1), 0)
    items = np.column_stack([aligned, targets])
    lengths = np.minimum(lengths, longest)
    if one_target:
        return _windows(items, np.ones(len(items), dtype=np.int64), lengths + 1, users)

    # A row continues the one before if its history is that one's history and target.
    continues = np.zeros(len(items), dtype=bool)
    continues[1:] = (users[1:] == users[:-1]) & (items[:-1, 1:] == aligned[1:]).all(axis=1)
    first_row = np.flatnonzero(~continues)
    n_targets = np.diff(np.append(first_row, len(items)))
    history = lengths[first_row]

    # Flat sequences: the first row's history, then the targets of all its rows.
    size = history + n_targets
    offset = np.append(0, size.cumsum())
    flat = np.zeros(offset[-1], dtype=np.int64)
    sequence = np.repeat(np.arange(len(first_row)), n_targets)
    flat[offset[sequence] + history[sequence] + np.arange(len(items)) - first_row[sequence]] = targets
    old = np.repeat(np.arange(len(first_row)), history)
    within = np.arange(len(old)) - np.repeat(history.cumsum() - history, history)
    flat[offset[old] + within] = aligned[first_row[old], longest - history[old] + within]

    # Windows end at item `longest` of a sequence, then every half window further, then at its end.
    stride = max(1, longest // 2)
    more = np.ceil(np.maximum(size - 1 - longest, 0) / stride).astype(np.int64)
    of = np.repeat(np.arange(len(size)), more + 1)
    number = np.arange(len(of)) - np.repeat((more + 1).cumsum() - (more + 1), more + 1)
    end = np.minimum(size[of] - 1, longest + number * stride)
    previous = np.where(number == 0, history[of] - 1, longest + (number - 1) * stride)
    length = np.minimum(end + 1, longest + 1)
    place = end[:, None] - longest + np.arange(longest + 1)
    items = np.where(place >= 0, flat[offset[of][:, None] + place.clip(0)], 0)
    return _windows(items, end - previous, length, users[first_row[of]])


def _windows(items, n_targets, lengths, users):
    return Windows(*(torch.from_numpy(np.ascontiguousarray(array)) for array in (items, n_targets, lengths, users)))

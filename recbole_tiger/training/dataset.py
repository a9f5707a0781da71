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
from recbole_tiger.model.base import SCORE_MATRIX
from recbole_tiger.training.history import ordinals

# Maximal number of users in an evaluation batch; larger batches are not faster.
MAX_USERS, GPU_MAX_USERS = 512, 4096


def prepare_columns(config, text_needed):
    """Make the dataset available, choose the columns to load if ``load_col`` is not set, and check the interactions.

    Args:
        text_needed: whether item text is needed.

    Raises:
        TigerError: a file or a column is missing, or cannot be used.
    """
    ensure_dataset(config, text_needed)
    if config["load_col"] is None:
        config["load_col"] = _load_col(config, text_needed)
    check_aliases(config)
    check_interactions(config)


def _load_col(config, text_needed):
    """The columns that every model loads if ``load_col`` is not set: ids, time and, if available, item text.

    Loading item text adds items without interactions to the catalogue, so models to compare must load the same columns.
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
                f"; if there are no times, add running numbers as {last}:float, in the order of the interactions"
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
    """Check, for sequential models, that histories in pre-split files share the ids of the items.

    Raises:
        TigerError: ``alias_of_item_id`` lacks the column of histories.
    """
    histories, sequential = history_field(config), config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    if sequential and config["benchmark_filename"] and histories not in (config["alias_of_item_id"] or []):
        raise TigerError(
            f"pre-split files hold histories in {histories}, which has to share the ids of {config['ITEM_ID_FIELD']}: "
            f"set --alias_of_item_id=[{histories}]"
        )


class Rows(Interaction):
    """RecBole's Interaction with faster indexing: an index is converted to a tensor once instead of once per column."""

    def __getitem__(self, index):
        if isinstance(index, list | np.ndarray) and len(index):
            index = torch.as_tensor(index)
        if not isinstance(index, torch.Tensor):
            return super().__getitem__(index)
        return Rows({name: values[index] for name, values in self.interaction.items()})


class CatalogueDataset(SequentialDataset):
    """RecBole's SequentialDataset with a catalogue of semantic IDs.

    Attributes:
        catalogue: a :class:`~recbole_tiger.catalogue.catalogue.Catalogue`.
    """

    @property
    def _model(self):
        return MODELS[self.config["model"]]

    def _load_data(self, token, dataset_path):
        prepare_columns(self.config, self._model.needs_text(self.config))
        dataset_path = self.config["data_path"]  # another one for a mixture
        try:
            super()._load_data(token, dataset_path)
        except ValueError as error:
            if "convert" not in str(error):  # pandas' message for a value of another type than its column
                raise
            raise TigerError(f"{dataset_path}: {error}; correct the value or the type in the header") from error
        if self.benchmark_filename_list is not None:
            histories = history_field(self.config)
            empty = int((self.inter_feat[histories].str.len() == 0).sum())
            if empty:
                raise TigerError(f"{empty} rows of the pre-split files have an empty history ({histories}): leave them out")

    def _data_processing(self):
        super()._data_processing()
        items = self.field2id_token[self.iid_field][1:].tolist()
        if self.config["eval_batch_size"] is None:
            n_users = GPU_MAX_USERS if self.config["device"].type == "cuda" else MAX_USERS
            if self._model.needs_scores(self.config):
                n_users = min(n_users, max(1, SCORE_MATRIX // len(items)))
            # In sampled evaluation (uni100, pop100) the batch size counts rows: a user's target and the sampled items.
            modes = self.config["eval_args"]["mode"].values()
            sampled = min(int(mode[3:]) if mode[:3] in ("uni", "pop") else 0 for mode in modes)
            self.config["eval_batch_size"] = n_users * (1 + sampled)
        self._model.check_sizes(self.config, len(items))
        self.catalogue = make_catalogue(self.config, items, self._model.needs_embeddings(self.config))

    def data_augmentation(self):
        """Make RecBole's rows, one per prefix, without its loop over rows."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        before = torch.from_numpy(ordinals(self.inter_feat[self.uid_field].numpy()))
        target = before.nonzero().squeeze(1)
        length = before[target].clamp(max=self.max_item_list_len)
        column = torch.arange(self.max_item_list_len)
        inside = column < length.unsqueeze(1)
        place = ((target - length).unsqueeze(1) + column) * inside
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
    """Windows of users' histories to train on.

    Attributes:
        items: int64 tensor [n, MAX_ITEM_LIST_LENGTH + 1], padded with zeros on the left.
        n_targets: int64 tensor [n], the number of items at the end of a window that are targets.
        lengths: int64 tensor [n], the number of items in a window.
        users: int64 tensor [n].
    """

    items: torch.Tensor
    n_targets: torch.Tensor
    lengths: torch.Tensor
    users: torch.Tensor

    def to(self, device):
        """A copy with items and users on ``device``. The rest stays on the host, which computes shapes without waiting."""
        return Windows(self.items.to(device), self.n_targets, self.lengths, self.users.to(device))

    def batches(self, n_targets, generator):
        """Indices of the windows of each batch, in random order.

        Windows are sorted by shape, shuffled within a shape, and cut into batches of about ``n_targets`` targets. The cuts
        do not depend on the shuffle, so every epoch has the same number of batches.
        """
        shuffled = torch.randperm(len(self.items), generator=generator)
        shape = (self.n_targets * (self.items.shape[1] + 1) + self.lengths)[shuffled]
        order = shuffled[shape.argsort(stable=True)]
        batch = (self.n_targets[order].cumsum(0) - 1) // n_targets
        batches = order.split(torch.unique_consecutive(batch, return_counts=True)[1].tolist())
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def target_positions(n_targets):
    """Positions of the targets in a batch of windows, computed on the host because shapes depend on them.

    Args:
        n_targets: int tensor [batch], the number of items at the end of each window that are targets.

    Returns:
        the maximal number of targets of a window; int tensor of the flat positions of the targets among that many last items
        of every window, or None if all of them are targets.
    """
    targets = int(n_targets.max())
    if int(n_targets.min()) == targets:
        return targets, None
    return targets, (torch.arange(targets, 0, -1) <= n_targets.unsqueeze(1)).flatten().nonzero().squeeze(1)


def training_windows(dataset, one_target):
    """Windows over the rows of a training dataset; the target of every row is a target of exactly one window.

    Args:
        dataset: RecBole's dataset of training rows (history, length, target).
        one_target: True makes one window per row (as in the paper). False puts all prefixes of a user into one window; a
            sequence of more than MAX_ITEM_LIST_LENGTH + 1 items is cut into windows that overlap by half, in which a target
            sees between MAX_ITEM_LIST_LENGTH / 2 and MAX_ITEM_LIST_LENGTH items.

    Returns:
        Windows.
    """
    rows, config = dataset.inter_feat, dataset.config
    longest = config["MAX_ITEM_LIST_LENGTH"]
    # After a split by time over all users, the rows of one user are not adjacent.
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

    # A row continues the previous row if its history is the history and the target of that row.
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

    # The first window of a sequence ends at item `longest`, the next ones half a window further each, the last at its end.
    stride = max(1, longest // 2)
    n_windows = 1 + np.ceil(np.maximum(size - 1 - longest, 0) / stride).astype(np.int64)
    sequence = np.repeat(np.arange(len(size)), n_windows)
    number = np.arange(len(sequence)) - np.repeat(n_windows.cumsum() - n_windows, n_windows)
    end = np.minimum(size[sequence] - 1, longest + number * stride)
    previous = np.where(number == 0, history[sequence] - 1, longest + (number - 1) * stride)
    length = np.minimum(end + 1, longest + 1)
    place = end[:, None] - longest + np.arange(longest + 1)
    items = np.where(place >= 0, flat[offset[sequence][:, None] + place.clip(0)], 0)
    return _windows(items, end - previous, length, users[first_row[sequence]])


def _windows(items, n_targets, lengths, users):
    return Windows(*(torch.from_numpy(np.ascontiguousarray(array)) for array in (items, n_targets, lengths, users)))

"""The Amazon product data of 2014: which categories, how large, and where their home is."""

from dataclasses import dataclass
from typing import NamedTuple

OFFICIAL = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"


class Counts(NamedTuple):
    """The size of a dataset."""

    users: int
    items: int
    interactions: int

    def __str__(self):
        return f"{self.users:,} users, {self.items:,} items, {self.interactions:,} interactions"


@dataclass(frozen=True)
class Amazon:
    """One category of the Amazon product data.

    Attributes:
        file: its name in the official files.
        department: where its category paths begin.
        published: its 5-core's size (TIGER paper, table 8).
    """

    file: str
    department: str
    published: Counts

    @property
    def originals(self):
        """Names of the reviews file and of the metadata file."""
        return f"reviews_{self.file}_5.json.gz", f"meta_{self.file}.json.gz"


DATASETS = {
    "amazon-beauty": Amazon("Beauty", "Beauty", Counts(22363, 12101, 198502)),
    "amazon-sports-outdoors": Amazon("Sports_and_Outdoors", "Sports & Outdoors", Counts(35598, 18357, 296337)),
    "amazon-toys-games": Amazon("Toys_and_Games", "Toys & Games", Counts(19412, 11924, 167597)),
}

"""The Amazon product data of 2014: categories, sizes and the official address."""

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
        file: name of the category in the official file names.
        department: first element of its category paths.
        published: size of its 5-core (TIGER paper, table 8).
    """

    file: str
    department: str
    published: Counts

    @property
    def originals(self):
        """File names of the reviews and of the metadata."""
        return f"reviews_{self.file}_5.json.gz", f"meta_{self.file}.json.gz"


DATASETS = {
    "amazon-beauty": Amazon("Beauty", "Beauty", Counts(22363, 12101, 198502)),
    "amazon-sports-outdoors": Amazon("Sports_and_Outdoors", "Sports & Outdoors", Counts(35598, 18357, 296337)),
    "amazon-toys-games": Amazon("Toys_and_Games", "Toys & Games", Counts(19412, 11924, 167597)),
}

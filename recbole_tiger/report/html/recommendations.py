"""The page of recommendations: histories and lists, their semantic IDs, shared codes, and log-probabilities by level."""

from recbole_tiger.errors import TigerError
from recbole_tiger.report.html.page import number, write_page

# Items of histories and lists: about 4 MB.
MOST_ROWS = 50_000


def check_rows(histories, k):
    """Refuse too many histories and lists for a page.

    Args:
        histories: lists of item tokens. k: length of a list.

    Raises:
        TigerError: histories and lists have more than MOST_ROWS items.
    """
    rows = sum(len(history) + k for history in histories)
    if rows > MOST_ROWS:
        raise TigerError(
            f"the page of {len(histories):,} histories and their lists of {k} would have {rows:,} items, but the limit is "
            f"{MOST_ROWS:,}: give fewer histories, or leave out --html"
        )


def write_recommendations_page(file, recommender, histories, lists, user=None):
    """Write the page of histories and their recommendations.

    Args:
        file: path of the page.
        recommender: a :class:`~recbole_tiger.runs.recommend.Recommender`.
        histories: lists of item tokens. lists: list of each history, as ``Recommender.recommend`` returns it.
        user: user token, for a model trained with user tokens.
    """
    row = {item: i for i, item in enumerate(recommender.items)}
    used = dict.fromkeys(item for history in histories for item in history)
    used.update(dict.fromkeys(entry["item"] for entries in lists for entry in entries))
    codes = recommender.semantic_ids.codes
    longest = recommender.model.max_seq_length
    shown, items = [], [[entry["item"] for entry in entries] for entries in lists]
    levels_of = recommender.log_probs_of_levels(histories, items, user) or [None] * len(items)
    for history, entries, found, parts in zip(histories, lists, items, levels_of, strict=True):
        shown.append(
            {
                "history": history[-longest:],
                "unread": max(0, len(history) - longest),
                "items": found,
                "scores": [number(entry["score"]) for entry in entries],
                "parts": parts and [[number(part) for part in levels] for levels in parts],
            }
        )
    data = {
        "catalogue": {item: [recommender.titles[row[item]], codes[row[item]].tolist()] for item in used},
        "depth": recommender.semantic_ids.depth,
        "histories": shown,
    }
    write_page(file, "Recommendations", "recommendations.js", data, charts=False)

"""Pictures of a sweep of codebooks."""

import pandas as pd
from matplotlib.figure import Figure

from recbole_tiger.files import whole_file


def _save(figure, file):
    with whole_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def codebook_heat_map(rows, metric, bigger, file):
    """The best validation score at each size and depth of the codebooks.

    Args:
        rows: dicts with ``codebook_size``, ``codebook_depth`` and the metric.
        bigger: whether more of the metric is better.
    """
    frame = pd.DataFrame(rows)
    best = frame.groupby(["codebook_depth", "codebook_size"])[metric].agg("max" if bigger else "min").unstack()
    figure = Figure(figsize=(1.6 + 1.1 * best.shape[1], 1.4 + 0.8 * best.shape[0]), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(best.to_numpy(), aspect="auto", origin="lower")
    axes.set_xticks(range(best.shape[1]), best.columns)
    axes.set_yticks(range(best.shape[0]), best.index)
    axes.set_xlabel("codes a level")
    axes.set_ylabel("levels")
    axes.set_title(f"validation {metric}")
    middle = (best.max().max() + best.min().min()) / 2
    for y, values in enumerate(best.to_numpy()):
        for x, value in enumerate(values):
            if pd.notna(value):
                colour = "white" if value < middle else "black"
                axes.text(x, y, f"{value:.4f}", ha="center", va="center", color=colour)
    figure.colorbar(image)
    _save(figure, file)


def collision_scatter(rows, metric, file):
    """The validation score against the share of the items that share their codes with another; a label is a codebook's size.

    Args:
        rows: dicts with ``codebook_size``, ``codebook_depth``, ``collision_rate`` and the metric.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    frame = pd.DataFrame(rows)
    for depth, of_depth in frame.groupby("codebook_depth"):
        axes.scatter(of_depth["collision_rate"], of_depth[metric], label=f"{depth} levels")
        for size, *point in of_depth[["codebook_size", "collision_rate", metric]].itertuples(index=False):
            axes.annotate(size, point, textcoords="offset points", xytext=(4, 4))
    axes.set_xlabel("collision rate")
    axes.set_ylabel(f"validation {metric}")
    axes.legend()
    _save(figure, file)

"""Full ranking from the ranked items of a beam, without RecBole's [users, items] score matrix."""

import torch
from recbole.evaluator.collector import Collector


class RankedCollector(Collector):
    """Collects ranked items instead of scores."""

    def eval_batch_collect(self, ranked, interaction, positive_u, positive_i):
        """Collect a batch, like RecBole's collector does from scores.

        Args:
            ranked: int tensor [batch, at least max(topk)] of items, best first.
            positive_i: int tensor [batch], the true item of each row; sequential data have one per row.
        """
        items = ranked[:, : max(self.topk)]
        if self.register.need("rec.items"):
            self.data_struct.update_tensor("rec.items", items)
        if self.register.need("rec.topk"):
            hits = items == positive_i.to(items.device).unsqueeze(1)
            found = torch.cat([hits, torch.ones_like(hits[:, :1])], dim=1)  # the last column is the number of true items
            self.data_struct.update_tensor("rec.topk", found.long())

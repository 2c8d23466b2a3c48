"""A loss that wants a margin between the positive and the hardest negative."""

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat

from muco.core import ComponentConfig, Loss, LossTerms, TurnEmbeddings, positive_pairs


class Triplet(Loss):
    """A smooth triplet loss with the most similar negative of each query."""

    class Config(ComponentConfig):
        margin: PositiveFloat = 0.2
        """By how much the cosine similarity of the positive should exceed that of the negative."""
        temperature: PositiveFloat = 0.1
        """Divides the violation of the margin; a lower value is closer to the hard triplet loss."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def per_turn(self, query: TurnEmbeddings, target: TurnEmbeddings) -> LossTerms:
        """Return the loss of each query. All similarities are in memory at once, so use small batches."""
        rows, columns = positive_pairs(query, target)
        similarity = query.vectors @ target.vectors.T
        sibling = (query.group_ids[:, None] == target.group_ids) & ~target.is_negative
        if sibling.all(1).any():
            raise ValueError("a query turn has no negative")
        hardest = similarity.masked_fill(sibling, -1.0).amax(1)
        missing = hardest[rows] - similarity[rows, columns] + self.config.margin
        each = F.softplus(missing / self.config.temperature) * self.config.temperature
        total = torch.zeros_like(hardest).index_add(0, rows, each)
        return LossTerms(total / rows.bincount(minlength=len(query)), {"violations": (missing > 0).sum()})

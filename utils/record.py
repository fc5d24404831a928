"""What the forward passes of one training step leave behind: which experts were chosen, and how large logits grew.

The parts of a model remember nothing themselves. They write into the record that they are given, and whoever gave it
reads it: the training loop for the balance loss, QK-Clip for the largest logits, the experts' bias for the loads.

    record = Record()
    loss = model.loss(x, y, record)     # once, or for several micro-batches
    ...
    optimizer.step(record)              # QK-Clip
    model.end_step_(record)             # the bias of the experts; the record is closed
"""

from __future__ import annotations

from collections import defaultdict

import torch


class LayerRecord:
    """What one layer leaves behind. What it does not have, such as experts in a dense layer, stays None.

    chosen: (..., K) int64, the experts of each token in the last forward.
    load: (E,) int64, how many tokens went to each expert in all forwards.
    balance_loss: scalar with a gradient, the load-balancing loss of the last forward, 1 at perfect balance.
    max_logits: (H,) fp32, the largest attention logit of each head in all forwards.
    """

    def __init__(self):
        self.chosen: torch.Tensor | None = None
        self.load: torch.Tensor | None = None
        self.balance_loss: torch.Tensor | None = None
        self.max_logits: torch.Tensor | None = None
        self.closed = False

    def note_choice(self, chosen: torch.Tensor, n_experts: int) -> None:
        """Keep the experts that a router chose, (..., K), and add them to the load."""
        self._must_be_open()
        load = count_choices(chosen, n_experts)  # (E,)
        self.chosen, self.load = chosen, load if self.load is None else self.load + load

    def note_logits(self, largest: torch.Tensor) -> None:
        """Keep the larger of what was noted and each head's largest logit in this forward, (H,)."""
        self._must_be_open()
        self.max_logits = largest if self.max_logits is None else torch.maximum(self.max_logits, largest)

    def _must_be_open(self) -> None:
        if self.closed:
            raise ValueError("this record's step is over: give the forwards of the next step a new Record()")


class Record:
    """The records of all layers: `record.layers[i]`, made when layer i first writes."""

    def __init__(self):
        self.layers: defaultdict[int, LayerRecord] = defaultdict(LayerRecord)

    def close(self) -> None:
        """The step is over: what stands here may be read, and another forward into it is an error."""
        for layer in self.layers.values():
            layer.closed = True

    def _of_layers(self, name: str) -> list[torch.Tensor]:
        values = [getattr(self.layers[i], name) for i in sorted(self.layers)]
        return [value for value in values if value is not None]

    def balance_loss(self) -> torch.Tensor:
        """Mean load-balancing loss of the layers with experts in the last forward, 1 at perfect balance."""
        losses = self._of_layers("balance_loss")
        if not losses:
            raise ValueError("no router computed its balance loss: it does where balance_coef is above 0")
        return torch.stack(losses).mean()

    def expert_load(self) -> torch.Tensor:
        """(layers with experts, E): how many tokens went to each expert."""
        return torch.stack(self._of_layers("load"))

    def dead_experts(self) -> float:
        """Share of the experts, of all layers, that got no token, from 0 to 1: a collapsed router has many."""
        return (self.expert_load() == 0).float().mean().item()

    def max_logits(self) -> torch.Tensor:
        """(L, H): the largest attention logit of each head."""
        return torch.stack(self._of_layers("max_logits"))


def count_choices(chosen: torch.Tensor, n_experts: int) -> torch.Tensor:
    """(E,) how often each expert was chosen. (torch.bincount makes a GPU wait: its result's shape depends on data.)"""
    flat = chosen.flatten()
    return flat.new_zeros(n_experts).scatter_add_(0, flat, torch.ones_like(flat))

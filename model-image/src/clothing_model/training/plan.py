"""Hyperparameters of a training, and its state between epochs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Resolution grows while training: quicker epochs first (arXiv:2104.00298), and a last one below the size served,
# because random zoom makes objects larger in training than they are in a whole photo (arXiv:1906.06423).
GROWTH = (0.6, 0.8, 0.9)


@dataclass(frozen=True)
class Plan:
    """The hyperparameters of a training.

    They are written beside the model, so that the training can be repeated.

    Attributes:
        network: a name from ``network.NAMES``.
        size: height and width in pixels of the input that the model will be served with.
        epochs: passes over the training photos (with a base: of its head).
        fine_tune_epochs: further passes with the base unfrozen, at a tenth of the rate; only for transfer learning.
        batch: photos a step.
        rate: the highest learning rate of the cosine.
        weight_decay: AdamW's, decoupled from the rate.
        smoothing: label smoothing.
        mixup: the alpha of mixup's Beta distribution (arXiv:1710.09412); 0 turns it off.
        average: momentum of the weights' exponential average, per step.
        patience: epochs without a better validation accuracy before it stops; 0 never stops early.
        keep: ``best`` saves the epoch with the best validation accuracy, ``last`` the last, so that the validation
            photos choose nothing.
        seed: of weights, order and augmentation.

    """

    network: str = "compact"
    size: int = 160
    epochs: int = 60
    fine_tune_epochs: int = 0
    batch: int = 32
    rate: float = 2e-3
    weight_decay: float = 0.05
    smoothing: float = 0.1
    mixup: float = 0.2
    average: float = 0.998
    patience: int = 0
    keep: str = "best"
    seed: int = 1

    def training_size(self, epoch: int) -> int:
        """Photo size in pixels in this epoch (from 0).

        It grows for the compact network and is constant for a base of fixed size.
        """
        if self.network != "compact":
            return self.size
        share = GROWTH[min(len(GROWTH) - 1, epoch * len(GROWTH) // self.epochs)]
        return max(64, round(self.size * share / 16) * 16)

    def learning_rate(self, step: int, steps: int) -> float:
        """Learning rate at a step: linear warm-up, then a half cosine.

        The warm-up takes a twentieth of ``steps``; the cosine ends at a hundredth of ``rate``.
        """
        warm = max(1, steps // 20)
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


@dataclass
class State:
    """State of a training, saved after each epoch.

    A stopped training resumes exactly there.

    Attributes:
        epoch: epochs done.
        phase: 0 for the first, 1 for fine-tuning.
        first: epochs that were done when the phase began.
        history: loss and accuracy of each epoch.
        best: epoch and accuracy of the weights that are kept.

    """

    epoch: int = 0
    phase: int = 0
    first: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=lambda: {"epoch": 0, "accuracy": -1.0})

    def stale(self, patience: int) -> bool:
        """Whether accuracy did not improve in the phase's last ``patience`` epochs.

        An equal accuracy is no improvement.
        """
        phase = self.history[self.first :]
        if not patience or not phase:
            return False
        return self.epoch - max(phase, key=lambda entry: entry["accuracy"])["epoch"] >= patience

    def save(self, folder: Path, identity: dict[str, Any]) -> None:
        """Write ``folder/state.json`` atomically; delete the previous checkpoint."""
        half = folder / "state.json.half"
        half.write_text(json.dumps({"identity": identity, "run": asdict(self)}))
        half.replace(folder / "state.json")
        for file in folder.glob(f"epoch-{self.epoch - 1}.*"):
            file.unlink()

    @staticmethod
    def load(folder: Path, identity: dict[str, Any]) -> State | None:
        """Load the state saved in ``folder``; None without a matching one.

        A state matches if it is of the same plan, photos and first weights.
        """
        try:
            saved: dict[str, Any] = json.loads((folder / "state.json").read_text())
        except (OSError, ValueError):
            return None
        return State(**saved["run"]) if saved["identity"] == json.loads(json.dumps(identity)) else None

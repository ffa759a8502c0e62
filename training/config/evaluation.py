"""How often the held-out pictures are measured, when a run ends by itself, and what follows the choice."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check

BUDGETS = ("forward passes", "seconds")
MAX_FOLDS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    num_evaluations: int = 16  # spread over the run, besides step 0; each is also a saved checkpoint
    timesteps_per_image: int = 8
    early_stop: bool = True
    patience: int = 5  # evaluations without a new best before the run stops
    min_evaluations: int = 8  # never stop before this many
    folds: int = 0  # runs that hold out other pictures each, before the one on all pictures; 0: none
    refit: bool = False  # after the choice, train again on all pictures for the chosen number of steps
    budget: str = "forward passes"  # one of BUDGETS: what the 10 % for evaluations are counted in

    def __post_init__(self):
        check(self.num_evaluations >= 1, f"{self.num_evaluations} evaluations. Set it to 1 or more in Evaluation Settings.")
        check(self.timesteps_per_image >= 1, f"{self.timesteps_per_image} timesteps a picture. Set it to 1 or more in Evaluation Settings.")
        check(self.patience >= 1, f"Patience is {self.patience}. Set it to 1 or more in Evaluation Settings.")
        check(
            self.folds == 0 or 2 <= self.folds <= MAX_FOLDS,
            f"{self.folds} folds. Set folds to 0 (off) or 2 to {MAX_FOLDS} in Evaluation Settings; 5 is usual.",
        )
        check(self.budget in BUDGETS, f"Evaluation budget '{self.budget}' is unknown. Choose one of {', '.join(BUDGETS)} in Evaluation Settings.")

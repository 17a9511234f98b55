"""Evidence: intervals, tests between two models on one test set, and between two recipes over paired seeds.

scipy and statsmodels do the arithmetic, but for resampling. There is no function that takes the best of several
runs: a maximum over runs says more about how many there were than about the recipe.
"""

from ferattn.statistics.images import (
    Interval,
    McNemar,
    bootstrap,
    mcnemar,
    paired_bootstrap,
    wilson,
)
from ferattn.statistics.planning import detectable_by_mcnemar, detectable_by_seeds, mcnemar_power
from ferattn.statistics.seeds import (
    Equivalence,
    Holm,
    PairedT,
    Summary,
    Wilcoxon,
    equivalence,
    hierarchical_bootstrap,
    holm,
    paired_t,
    summarize,
    wilcoxon,
)
from ferattn.statistics.signs import SignFlip, sign_flip, subject_sign_flip

__all__ = [
    "Equivalence",
    "Holm",
    "Interval",
    "McNemar",
    "PairedT",
    "SignFlip",
    "Summary",
    "Wilcoxon",
    "bootstrap",
    "detectable_by_mcnemar",
    "detectable_by_seeds",
    "equivalence",
    "hierarchical_bootstrap",
    "holm",
    "mcnemar",
    "mcnemar_power",
    "paired_bootstrap",
    "paired_t",
    "sign_flip",
    "subject_sign_flip",
    "summarize",
    "wilcoxon",
    "wilson",
]

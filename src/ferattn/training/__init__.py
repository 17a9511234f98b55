"""Training by recipe on Lightning, evaluation with intervals; takes modules and datasets, never names of models."""

from ferattn.errors import MissingDependency

try:
    import lightning.pytorch as _  # noqa: F401  # before the modules that import it too
except ImportError as error:
    name = (error.name or "lightning").partition(".")[0]
    raise MissingDependency(f'training needs {name}: pip install "ferattn[train]"') from error

from ferattn.training.callbacks import MovingAverage, Plateau
from ferattn.training.evaluation import evaluate, fit_temperature
from ferattn.training.fitting import fit
from ferattn.training.folder import RunFolder
from ferattn.training.machine import PRECISIONS, Machine
from ferattn.training.module import FaceClassifier, FaceData
from ferattn.training.parts import Parts, make_parts, store
from ferattn.training.predictions import Predictions, pool, predict
from ferattn.training.recipe import Recipe, RecipePage, list_recipes, load_page, load_recipe
from ferattn.training.teaching import Teacher, Teachers
from ferattn.training.warm_start import warm_start

__all__ = [
    "PRECISIONS",
    "FaceClassifier",
    "FaceData",
    "Machine",
    "MovingAverage",
    "Parts",
    "Plateau",
    "Predictions",
    "Recipe",
    "RecipePage",
    "RunFolder",
    "Teacher",
    "Teachers",
    "evaluate",
    "fit",
    "fit_temperature",
    "list_recipes",
    "load_page",
    "load_recipe",
    "make_parts",
    "pool",
    "predict",
    "store",
    "warm_start",
]

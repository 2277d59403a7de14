from .api import apply, compress, curve, load, plan, preview, save, score
from .checkpoint import open_model
from .core.errors import DngeError
from .graph.families import build_graph
from .graph.types import Cut, ModelGraph, Scores
from .jobs.compared import compare
from .lora.place import flatten_adapter, place_lora
from .lora.plan import LoraPlan
from .plans.prune_plan import PrunePlan
from .plans.vocabulary_plan import VocabularyPlan
from .recipes.schema import Recipe
from .vocabulary.trim import plan_vocabulary, trim_vocabulary

__version__: str

__all__ = [
    "Cut",
    "DngeError",
    "LoraPlan",
    "ModelGraph",
    "PrunePlan",
    "Recipe",
    "Scores",
    "VocabularyPlan",
    "apply",
    "build_graph",
    "compare",
    "compress",
    "curve",
    "flatten_adapter",
    "load",
    "open_model",
    "place_lora",
    "plan",
    "plan_vocabulary",
    "preview",
    "save",
    "score",
    "trim_vocabulary",
]

from .compression import Compression
from .loading import load, open_model, opened
from .saving import save
from .weight_checks import check_weights

__all__ = ["Compression", "check_weights", "load", "open_model", "opened", "save"]

"""Checkpoints in and out: open a model safely, save a compressed one whole or not at all, load it back.

Names are imported on first use (`__init__.pyi`): what only looks at files needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

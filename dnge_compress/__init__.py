"""Data-free structured compression of PyTorch and Hugging Face models.

    from dnge_compress import compress
    small = compress(model)

What is public stands in `__init__.pyi`; names are imported on first use, so that `dnge --help` stays quick.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

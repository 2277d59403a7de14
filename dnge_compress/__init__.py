"""Data-free structured compression of PyTorch and Hugging Face models.

    from dnge_compress import compress
    small = compress(model)

What is public stands in `__init__.pyi`; names are imported on first use, so that `dnge --help` stays quick.
"""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    import lazy_loader  # here, since `dnge` takes signals before it loads anything that takes milliseconds

    found, _, names = lazy_loader.attach_stub(__name__, __file__)
    return names if name == "__all__" else found(name)


def __dir__() -> list[str]:
    names: list[str] = __getattr__("__all__")  # type: ignore[assignment]
    return names

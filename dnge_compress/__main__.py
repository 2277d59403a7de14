"""`python -m dnge_compress` is `dnge`."""

from dnge_compress.cli.start import start

if __name__ == "__main__":
    raise SystemExit(start())

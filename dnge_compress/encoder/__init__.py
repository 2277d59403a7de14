"""The pretrained dynamic graph encoder: snapshots, messages, memory, passes, readouts.

After "Dynamic Neural Graph Encoding of Inference Processes in Deep Weight Space" (arXiv 2607.02166), re-derived from
its equations for scoring: parameters are shared over time, messages are matrix products, a second pass runs backward
through the transposed blocks, and the readouts are per space, layer and matrix.
"""

from dnge_compress.encoder.model import DNGEncoder

__all__ = ["DNGEncoder"]

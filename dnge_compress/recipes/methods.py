"""Who scores and who places LoRA, by the names that recipes call them; none is imported before it is used."""

from __future__ import annotations

from dnge_compress.core.plugins import Registry

SCORERS = Registry(
    what="scorer", package="dnge_compress.scorers", offers=("score", "NEEDS_DATA"), renamed={"probe": "obs"}
)
PLACERS = Registry(
    what="placer", package="dnge_compress.lora.placers", offers=("weigh", "NEEDS_DATA"), renamed={"probe": "fisher"}
)

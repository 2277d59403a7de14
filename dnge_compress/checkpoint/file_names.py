"""What the files of a checkpoint are called, ours and other people's."""

from __future__ import annotations

from dnge_compress.checkpoint.model_files import INDEX

MODULES = "modules.json"
TOKENIZER = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*.json", "vocab*.txt", "merges.txt"),
    *("*.model", "*.tiktoken", "chat_template*.jinja", "chat_template*.json", "additional_chat_templates/*.jinja"),
)
SETTINGS = (
    *TOKENIZER,
    *("*processor_config.json", "feature_extractor*.json"),
    *(MODULES, "config_sentence_transformers.json", "sentence_*_config.json"),
)
PATTERNS = (*SETTINGS, "LICENSE*", "NOTICE*")  # the files beside the weights
MODULE_PATTERNS = ("*.json", "*.txt", "*.safetensors")  # in the folders that modules.json lists
# What may go in a folder that is forced. A licence is nobody's leftover: one that we didn't write is never deleted.
CHECKPOINT_FILES = (
    *("config.json", "generation_config.json", "model*.safetensors", INDEX, "README.md", "dnge_*.json"),
    *SETTINGS,
    *(f"[0-9]*_*/{pattern}" for pattern in MODULE_PATTERNS),
)

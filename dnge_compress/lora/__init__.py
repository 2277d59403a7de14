"""Where LoRA adapters go, and with what rank."""

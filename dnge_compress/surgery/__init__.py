"""Surgery: the only code that changes a model, and the proof that it did so exactly."""

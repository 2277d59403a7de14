"""A zoo of small trained networks for the encoder to learn from."""

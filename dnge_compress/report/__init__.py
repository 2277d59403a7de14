"""What was done, as values that render themselves."""

"""From scores to a plan."""

"""A model as a dynamic graph, and what cuts do to it."""

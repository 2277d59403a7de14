"""The grammar of recipes: what may be written, where it stands, and what to say about what is wrong."""

"""One model under one recipe: scored once, planned from many times, carried out, measured."""

"""Families that nobody wrote: what a config can say of an architecture, found by changing it and proved on a copy.

An integer of the config is changed, the model built again on the meta device, and the shapes compared: the axes that
moved are those the number counts, and what it can say is what plain transformers reloads. Nothing found this way is
believed before a small random copy, cut and loaded into the smaller architecture, computes what the whole one computes
with the same units masked.
"""

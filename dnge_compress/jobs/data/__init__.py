"""Rows to train on: found, read, checked, tokenised, stored; and written by the model itself where there are none."""

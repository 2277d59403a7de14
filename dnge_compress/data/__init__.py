"""Rows that a user has, or a model writes itself: found, told apart, read, checked, tokenised, stored."""

"""Implicit neural representations: SIREN sets."""

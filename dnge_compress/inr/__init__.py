"""Implicit neural representations: SIRENs fitted to images, and what the DNG encoder reads from their weights."""

from dnge_compress.inr.classifier import InrClassifier
from dnge_compress.inr.encoders import InrEncoder, InrEncoderConfig, InrReader
from dnge_compress.inr.head import HeadConfig
from dnge_compress.inr.jls import INR2JLS, JlsConfig
from dnge_compress.inr.learning import TrainSettings
from dnge_compress.inr.sets import InrSet, gather
from dnge_compress.inr.siren import Siren

__all__ = [
    "INR2JLS",
    "HeadConfig",
    "InrClassifier",
    "InrEncoder",
    "InrEncoderConfig",
    "InrReader",
    "InrSet",
    "JlsConfig",
    "Siren",
    "TrainSettings",
    "gather",
]

"""A model's contract: what it takes, what its numbers mean, and its labels. Needs no dependency."""

from clothing_contract.contract import (
    CHANNELS,
    FITS,
    PREPROCESSINGS,
    RESAMPLINGS,
    ContractError,
    Input,
)

__version__ = "0.1.0"

__all__ = [
    "CHANNELS",
    "FITS",
    "PREPROCESSINGS",
    "RESAMPLINGS",
    "ContractError",
    "Input",
]

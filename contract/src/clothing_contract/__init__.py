"""A model's contract: input, meaning of its numbers, and labels.

The package has no dependency.
"""

from clothing_contract.contract import (
    CHANNELS,
    FITS,
    PREPROCESSINGS,
    RESAMPLINGS,
    SCORES,
    ContractError,
    Input,
    Output,
)

__version__ = "0.1.0"

__all__ = [
    "CHANNELS",
    "FITS",
    "PREPROCESSINGS",
    "RESAMPLINGS",
    "SCORES",
    "ContractError",
    "Input",
    "Output",
]

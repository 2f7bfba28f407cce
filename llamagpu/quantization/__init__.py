"""Quantised matrices: how they are held in memory and what they mean. Nothing here knows of files or devices."""

from llamagpu.quantization.affine import AffineQuant
from llamagpu.quantization.deferred import Deferred
from llamagpu.quantization.int8 import Int8Matrix
from llamagpu.quantization.random import RandomMatrix
from llamagpu.quantization.round_to_nearest import round_to_nearest

__all__ = ["AffineQuant", "Deferred", "Int8Matrix", "RandomMatrix", "round_to_nearest"]

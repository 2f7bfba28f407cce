"""Quantised matrices: how they are held in memory and what they mean. Nothing here knows of files or devices."""

from llamagpu.quantization.int8 import Int8Matrix

__all__ = ["Int8Matrix"]

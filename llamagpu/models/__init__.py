"""Architectures: one file each, written once over the operations of ``backends/protocol.py``."""

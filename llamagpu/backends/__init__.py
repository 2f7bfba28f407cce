"""Backends run a model's operations on one device. ``protocol.py`` names the operations."""

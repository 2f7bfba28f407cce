"""How GPT-2's files, and those of its kind, write bytes as letters, so that no token has a space or is invisible."""

from __future__ import annotations


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: a printable Latin-1 byte is its own letter, the others are U+0100 onwards."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_LETTER = byte_alphabet()


def byte_level(piece: str) -> bytes:
    """A piece that has other characters than those letters is plain text, as the library has it."""
    try:
        return bytes(BYTE_OF_LETTER[letter] for letter in piece)
    except KeyError:
        return piece.encode()

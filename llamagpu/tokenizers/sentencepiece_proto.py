"""A SentencePiece model (tokenizer.model, a protobuf) written from a vocabulary: BPE, nothing normalised.

And what must be known of one before the library reads it: its tables of letters.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

# Types of pieces. GGUF numbers them alike.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE = 2
NO_PIECE = b"\0"  # that no vocabulary has
MAX_FIELDS = 1 << 20  # of a message: the library takes a hundred bytes for the shortest piece


def model_proto(
    pieces: Iterable[bytes],
    scores: Iterable[float],
    types: list[int],
    bos: int | None,
    eos: int | None,
    add_dummy_prefix: bool,
) -> bytes:
    """One piece of each token, in the order of their ids. bos, eos: ids, None for none.

    add_dummy_prefix: a space before each text. An empty piece, which SentencePiece does not allow, gets the name
    that llama.cpp gives it.
    """
    out = bytearray()
    names = {bos: NO_PIECE, eos: NO_PIECE}
    for token, (piece, score, kind) in enumerate(zip(pieces, scores, types, strict=True)):
        piece = piece or b"[EMPTY_%d]" % token
        if token in names:
            names[token] = piece
        body = text(1, piece) + struct.pack("<Bf", 2 << 3 | 5, score) + number(3, kind)
        out += text(1, body)
    trainer = number(3, BPE) + number(4, len(types)) + number(35, BYTE in types)
    trainer += text(46, NO_PIECE if bos is None else names[bos]) + text(47, NO_PIECE if eos is None else names[eos])
    normalizer = text(1, b"identity") + number(3, add_dummy_prefix) + number(4, False) + number(5, True)
    return bytes(out + text(2, trainer) + text(3, normalizer))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def charsmaps(data: bytes) -> Iterator[bytes]:
    """The tables of letters by which a model rewrites a text. Raises ValueError for what is no protobuf."""
    for normalizer in values(data, 3):
        yield from values(normalizer, 2)


def values(data: bytes, wanted: int) -> Iterator[bytes]:
    """The texts of one field of a message. Raises ValueError for what is no protobuf."""
    at, end, n_fields = 0, len(data), 0
    try:
        while at < end:
            n_fields += 1
            while data[at] == 10 and data[at + 1] < 128:  # a piece: there are many, and they are short
                if wanted == 1:
                    yield data[at + 2 : at + 2 + data[at + 1]]
                at += 2 + data[at + 1]
                n_fields += 1
                if at >= end:
                    break
            if n_fields > MAX_FIELDS:
                raise OverflowError
            if at >= end:
                break
            tag, at = read_varint(data, at)
            if tag & 7 == 2:
                size, at = read_varint(data, at)
                if tag >> 3 == wanted:
                    yield data[at : at + size]
                at += size
            elif tag & 7 == 0:
                _, at = read_varint(data, at)
            elif tag & 7 in (1, 5):
                at += 8 if tag & 7 == 1 else 4
            else:
                raise ValueError
        if at > end:
            raise ValueError
    except (IndexError, ValueError):
        raise ValueError(f"it is no protobuf at byte {at}") from None
    except OverflowError:
        raise ValueError(f"it has more than {MAX_FIELDS} pieces") from None


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number, and where the next one begins."""
    value = 0
    for i in range(10):
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value, at + i + 1
    raise ValueError

"""rllama's way through a SentencePiece tokenizer.model: the longest piece that fits, then the next; no BPE.

Most texts get the same ids as by BPE; some do not, and then the model reads what it was not trained on. It is for
repeating what rllama says.
"""

from __future__ import annotations

from functools import cached_property

from llamagpu.tokenizers.sentencepiece import SentencePieceTokenizer

NEWLINE = "<0x0A>"


class GreedyTokenizer(SentencePieceTokenizer):
    """A tokenizer.model read as rllama reads it. Raises ModelFormatError as its base does."""

    @cached_property
    def ids(self) -> dict[str, int]:
        """Piece to id, the first of equals. All of them: "</s>" and "<0x41>" in a text become that token."""
        ids: dict[str, int] = {}
        for token in range(self.n_pieces):
            ids.setdefault(self.processor.id_to_piece(token), token)
        return ids

    @cached_property
    def lengths(self) -> list[int]:
        return sorted({len(piece) for piece in self.ids if piece}, reverse=True)

    def encode_text(self, text: str) -> list[int]:
        """A character that begins no piece is left out if it is ASCII, else it ends the text, as in rllama. An empty
        text is the space that all begin with."""
        text = "\u2581" + text.replace(" ", "\u2581").replace("\n", NEWLINE)
        ids: list[int] = []
        at = 0
        while at < len(text):
            length = next((n for n in self.lengths if text[at : at + n] in self.ids), 0)
            if length:
                ids.append(self.ids[text[at : at + length]])
            elif not text[at].isascii():
                break
            at += length or 1
        return ids

    @property
    def longest_piece(self) -> int:
        return 0  # what is no piece is left out

    def token_bytes(self, token: int) -> bytes:
        """rllama decodes no byte token but the newline: the others are printed as they are written."""
        if token < self.n_pieces and self.processor.is_byte(token):
            piece: str = self.processor.id_to_piece(token)
            return b"\n" if piece == NEWLINE else piece.encode()
        return super().token_bytes(token)

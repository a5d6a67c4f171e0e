"""A toy T5 tokenizer with both files that released ones have: tokenizer.json and spiece.model."""

from __future__ import annotations

import struct
from pathlib import Path

from ._tiny import TokenizerFiles, t5_tokenizer_files, t5_vocabulary

UNIGRAM = 1
KINDS = {"<unk>": 2, "<pad>": 3, "</s>": 3}  # unknown, control; others are normal


def t5_spiece_tokenizer_files() -> TokenizerFiles:
    """Writes a T5 tokenizer's files, the sentencepiece model among them."""
    fast = t5_tokenizer_files()

    def write(folder: Path) -> None:
        fast.write(folder)
        (folder / "spiece.model").write_bytes(spiece_model(t5_vocabulary()))

    return TokenizerFiles("T5Tokenizer", write)


def spiece_model(pieces: list[tuple[str, float]]) -> bytes:
    """A sentencepiece unigram model that normalizes nothing but spaces, from (piece, score)s.

    Upstream: google/sentencepiece@v0.2.0 src/sentencepiece_model.proto::ModelProto
    """
    written = b"".join(_field(1, _piece(piece, score)) for piece, score in pieces)
    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    trainer = b"".join(
        _number(field, value)
        for field, value in (
            (3, UNIGRAM),
            (4, len(pieces)),
            (40, ids["<unk>"]),
            (41, -1),  # no token at the start
            (42, ids["</s>"]),
            (43, ids["<pad>"]),
        )
    )
    return written + _field(2, trainer) + _field(3, _field(1, b"identity"))


def _piece(piece: str, score: float) -> bytes:
    kind = KINDS.get(piece, 1)
    return _field(1, piece.encode()) + struct.pack("<Bf", 2 << 3 | 5, score) + _number(3, kind)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value % 2**64)


def _varint(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])

"""A tensor of ggml's types, as GGUF files and rwkv.cpp's hold it: floats as views, matrices of blocks as Deferred."""

from __future__ import annotations

from llamagpu.checkpoint import Tensor
from llamagpu.errors import ModelFormatError
from llamagpu.formats.mapped_file import MappedFile
from llamagpu.quantization import AffineQuant, Deferred, ggml
from llamagpu.quantization.affine import affine_nbytes


def ggml_tensor(file: MappedFile, start: int, kind: int, shape: tuple[int, ...], name: str) -> Tensor:
    """The tensor at byte ``start``, whose nbytes are those of the file. kind: ggml's number of a type that is known.

    Raises ModelFormatError for what does not lie within the file, or is no matrix of whole blocks.
    """
    if kind in ggml.FLOATS:
        return file.array(start, ggml.FLOATS[kind], shape, name)
    block = ggml.BLOCKS[kind]
    if len(shape) != 2 or shape[1] % block.n_weights:
        problem = f"has shape {list(shape)}: {block.kind} is of rows of whole blocks of {block.n_weights}"
        raise ModelFormatError(file.path, name, problem, "convert the model again")
    rows, columns = shape
    data = file.array(start, "u1", (rows, columns // block.n_weights, block.n_bytes), name)

    def make() -> AffineQuant:
        try:
            return ggml.repack(data, block)
        except ValueError as error:
            raise ModelFormatError(file.path, name, str(error), "the file is damaged: download it again") from None

    held = affine_nbytes((rows, columns), block.bits, block.group_size, 2 if block.exact_in_half else 4)
    return Deferred((rows, columns), data.nbytes, block.kind, make, held)

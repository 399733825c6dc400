"""Sizes of Winograd convolution: how tiles are divided into vectors and blocks, and the memory that takes."""

from typing import NamedTuple

import numpy as np

from minicnn.kernels.cpu import threads
from minicnn.kernels.cpu.vectors import VECTOR_REGISTERS, lanes

TILE = 4  # pixels of an output tile along each axis
FREQUENCIES = 8  # numbers of a transformed tile along each axis
TAPS = 5  # of a kernel along each axis
PAIRS = 2 * FREQUENCIES  # vectors of a transformed quad
LINE = 64  # bytes of a cache line

#: Output channels whose sums are in registers -> quads.
QUADS = (
    {2: 4, 3: 5, 4: 5, 5: 4, 6: 4, 7: 3, 8: 3, 9: 2, 10: 2, 12: 2, 14: 1}
    if VECTOR_REGISTERS == 32
    else {2: 4, 3: 3, 4: 3, 5: 2}
)
MOST_GRADIENTS = 6 if VECTOR_REGISTERS == 32 else 3  # output channels of a product of the weight gradient
BLOCK_TILES = 24  # tiles of a block, few enough that they stay in the L2 cache
GRADIENT_TILES = 96  # of a block of a weight gradient: more of them, since its sums over lanes are then rarer
INPUTS = 4  # input channels of it
CHUNKS = 4  # parts of a weight gradient, which threads sum apart; their number must not depend on the threads


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def block_of(out_channels: int) -> int:
    """Choose the output channels of a product: little padding, then few loads for each multiply-add."""
    return min(QUADS, key=lambda size: _up(out_channels, size) * (1 + 0.15 * (1 / size + 1 / QUADS[size])))


class Tiling(NamedTuple):
    """How the tiles of a batch of planes are divided into quads and blocks.

    Attributes
    ----------
    n, h, w, k, itemsize : int
        Batch size, rows, columns, kernel size, and bytes of an element.
    most : int
        Most quads in a block of a 5 x 5 convolution, most rows of tiles in one of a 9 x 9.
    """

    n: int
    h: int
    w: int
    k: int
    itemsize: int
    most: int

    @property
    def lanes(self) -> int:
        return lanes(self.itemsize)

    @property
    def extra(self) -> int:
        """1 for a 9 x 9 kernel, whose blocks need one row and one quad of transformed tiles more; 0 else."""
        return int(self.k > 5)

    @property
    def parts(self) -> int:
        """Number of 5 x 5 kernels."""
        return 4 if self.extra else 1

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width rounded up to whole tiles, of a 9 x 9 convolution to whole quads."""
        return _up(self.h, TILE), _up(self.w, self.lanes if self.extra else TILE)

    @property
    def segments(self) -> int:
        """Runs of consecutive pixels that a quad consists of."""
        return next(parts for parts in (1, 2, 4) if self.padded[1] % (self.lanes // parts) == 0)

    @property
    def rows(self) -> int:
        """Rows of tiles of a block: at most `most` for 9 x 9, else 1, a list of quads from anywhere."""
        return min(self.most, self.padded[0] // TILE) if self.extra else 1

    @property
    def row_quads(self) -> int:
        """Quads of each of these rows."""
        return self.padded[1] // self.lanes if self.extra else min(self.most, self.all_quads)

    @property
    def tiles(self) -> int:
        """Tiles of all images."""
        height, width = self.padded
        return self.n * (height // TILE) * (width // TILE)

    @property
    def all_quads(self) -> int:
        return -(-self.tiles * TILE // self.lanes)

    @property
    def blocks(self) -> int:
        if self.extra:
            return self.n * -(-self.padded[0] // TILE // self.rows)
        return -(-self.all_quads // self.row_quads)

    def steps(self, channels: int, quads: int) -> np.ndarray:
        """Return distances in the memory of a thread or a chunk, in elements but for the first and the fourth.

        Parameters
        ----------
        channels : int
            Channels of the transformed input V.
        quads : int
            Rows of the transformed output, or of the transformed gradient, have a multiple of so many quads.

        Returns
        -------
        (7,) int64
            Quads of a row of V, distance of its vectors and of its channels; the same three for the sums M (or the
            gradients D); and where these begin. A channel has an odd number of cache lines.
        """
        line, row, m_row = LINE // self.itemsize, self.row_quads + self.extra, _up(self.row_quads, quads)
        v_step, m_step = (self.rows + self.extra) * row * self.lanes, self.rows * m_row * self.lanes
        v_channel, m_channel = PAIRS * v_step + line, PAIRS * m_step + line
        # products read up to two groups of quads past the last channel
        start = _up(channels * v_channel + 2 * quads * self.lanes, line)
        return np.array([row, v_step, v_channel, m_row, m_step, m_channel, start])

    def tables(self, image: int, row: int, of_input: bool) -> np.ndarray:
        """Return the first element of each run, (blocks, runs) int, for the given distances of images and rows."""
        if self.extra:
            return self._bands(image, row, of_input)
        height, width = self.padded
        run = self.lanes // self.segments
        starts = np.add.outer(np.arange(0, height, TILE) * row, np.arange(0, width, run))
        starts = np.add.outer(np.arange(self.n) * image, starts).ravel() - (2 * row + 2 if of_input else 0)
        wanted = self.blocks * self.row_quads * self.segments
        return np.pad(starts, (0, wanted - starts.size), "edge").reshape(self.blocks, -1)

    def _bands(self, image: int, row: int, of_input: bool) -> np.ndarray:
        more, shift = (1, 4 * row + 4) if of_input else (0, 0)
        tops = np.arange(0, self.padded[0], TILE * self.rows)
        rows = np.minimum(np.add.outer(tops, TILE * np.arange(self.rows + more)), self.padded[0] - TILE * (1 - more))
        starts = np.add.outer(rows * row, self.lanes * np.arange(self.row_quads + more)) - shift
        return np.add.outer(np.arange(self.n) * image, starts).reshape(self.blocks, -1)

    def counts(self) -> np.ndarray:
        """Return the rows of each block, the quads of a row, and the tiles, (blocks, 3) int."""
        if self.extra:
            tops = np.arange(0, self.padded[0] // TILE, self.rows)
            rows = np.tile(np.minimum(self.rows, self.padded[0] // TILE - tops), self.n)
            quads, across = np.full_like(rows, self.row_quads), self.lanes // TILE
            return np.stack([rows, quads, rows * quads * across], 1)
        first = np.arange(self.blocks) * self.row_quads
        quads = np.minimum(self.row_quads, self.all_quads - first)
        return np.stack([np.ones_like(quads), quads, self.tiles - first * (self.lanes // TILE)], 1)


class Correlation(NamedTuple):
    """Sizes of a correlation by this method: its tiles, input and output channels."""

    tiling: Tiling
    channels: int
    out_channels: int

    @classmethod
    def of(cls, n: int, c: int, o: int, h: int, w: int, k: int, itemsize: int) -> "Correlation":
        """Choose the block size."""
        quads = QUADS[block_of(o)]
        return cls(
            Tiling(n, h, w, k, itemsize, 4 if k > 5 else _up(BLOCK_TILES * TILE // lanes(itemsize), quads)), c, o
        )

    @property
    def outputs(self) -> int:
        return block_of(self.out_channels)

    @property
    def u_shape(self) -> tuple[int, ...]:
        blocks = -(-self.out_channels // self.outputs)
        return PAIRS, blocks, self.tiling.parts, self.channels, TILE * self.outputs

    @property
    def steps(self) -> np.ndarray:
        """Distances in the memory of a thread (`Tiling.steps`)."""
        return self.tiling.steps(self.channels, QUADS[self.outputs])

    @property
    def scratch(self) -> tuple[int, int]:
        """Shape of the memory of all threads."""
        *_, m_channel, start = self.steps.tolist()
        return 1 if self.tiling.blocks == 1 else threads.MOST, start + self.u_shape[1] * self.outputs * m_channel


class WeightGradient(NamedTuple):
    """Sizes of a weight gradient by this method: its tiles, input and output channels."""

    tiling: Tiling
    channels: int
    out_channels: int

    @classmethod
    def of(cls, n: int, c: int, o: int, h: int, w: int, k: int, itemsize: int) -> "WeightGradient":
        """Choose the block size."""
        tiles = n * -(-h // TILE) * -(-w // TILE)
        most = min(GRADIENT_TILES, -(-tiles // CHUNKS)) * TILE // lanes(itemsize)
        return cls(Tiling(n, h, w, k, itemsize, 4 if k > 5 else max(1, most)), c, o)

    @property
    def outputs(self) -> int:
        sizes = range(min(2, self.out_channels), min(MOST_GRADIENTS, self.out_channels) + 1)
        return min(sizes, key=lambda size: (_up(self.out_channels, size) * (size + 1.5) / size, -size))

    @property
    def chunks(self) -> int:
        return min(CHUNKS, self.tiling.blocks)

    @property
    def du_shape(self) -> tuple[int, ...]:
        outputs, inputs = _up(self.out_channels, self.outputs), _up(self.channels, INPUTS)
        return self.chunks, self.tiling.parts, PAIRS, outputs, TILE * inputs

    @property
    def steps(self) -> np.ndarray:
        """Distances in the memory of a chunk (`Tiling.steps`)."""
        return self.tiling.steps(_up(self.channels, INPUTS), 1)

    @property
    def scratch(self) -> tuple[int, int]:
        """Shape of the memory of all chunks."""
        *_, d_channel, start = self.steps.tolist()
        return self.chunks, start + _up(self.out_channels, self.outputs) * d_channel

"""The interlinked network of Zhou, Hu and Zhang (2015) in one file, in NumPy: forward, backward, loss, SGD.

Run it to train the eye network on drawn faces, in a few minutes; `icnn/weights/eye.safetensors` is another start.
"""

import sys

import numpy as np
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from icnn.synthetic.faces import draw_face


class Maps:
    """Feature maps or parameters `y`, the loss's gradient `dy` with respect to them, and what they came from."""

    def __init__(self, y, sources=(), back=lambda dy: ()):
        self.y, self.dy, self.sources, self.back = y, 0, sources, back
        self.tape = sources[0].tape if sources else []  # all maps of one image, in the order of their computation
        self.tape.append(self)

    def backward(self, dy):
        self.dy = dy
        for maps in reversed(self.tape):
            for source, dx in zip(maps.sources, maps.back(maps.dy), strict=True):
                source.dy = source.dy + dx  # maps that several others read get the sum

    def conv(self, w, b):  # eq. (1) for k = 5: y[o, i, j] = b[o] + sum of w[o, c, u, v] x[c, i + u - 2, j + v - 2]
        x = windows(self.y, w.y.shape[2])

        def back(dy):  # x[i + u - 2] went into y[i], and its gradient comes back from there: the window is turned
            dx = np.einsum("ocuv,ouvij->cij", w.y[:, :, ::-1, ::-1], windows(dy, w.y.shape[2]), optimize=True)
            return dx, np.einsum("oij,cuvij->ocuv", dy, x, optimize=True), dy.sum((1, 2))

        return Maps(np.einsum("ocuv,cuvij->oij", w.y, x, optimize=True) + b.y[:, None, None], (self, w, b), back)

    def tanh(self):
        y = np.tanh(self.y)
        return Maps(y, (self,), lambda dy: (dy * (1 - y * y),))

    def max_pool(self):  # the gradient goes to the largest of four pixels, the first of equals
        (i, j), largest = np.indices(self.y.shape[1:]) % 2, tiles(self.y).argmax(3).repeat(2, 1).repeat(2, 2)
        return Maps(tiles(self.y).max(3), (self,), lambda dy: (dy.repeat(2, 1).repeat(2, 2) * (largest == 2 * i + j),))

    def mean_pool(self):
        return Maps(tiles(self.y).mean(3), (self,), lambda dy: (dy.repeat(2, 1).repeat(2, 2) / 4,))

    def upsample(self):
        return Maps(self.y.repeat(2, 1).repeat(2, 2), (self,), lambda dy: (tiles(dy).sum(3),))

    def concat(*maps):  # x.concat(y, z): the maps of x, then those of y, then those of z
        ends = np.cumsum([len(x.y) for x in maps])[:-1]
        return Maps(np.concatenate([x.y for x in maps]), maps, lambda dy: np.split(dy, ends))

    def loss(self, labels):  # Sec. 2.5: mean over the pixels of -log p[label], where p = softmax(y)
        e, onehot = np.exp(self.y - self.y.max(0)), labels == np.arange(len(self.y))[:, None, None]
        p = e / e.sum(0)
        return Maps(-np.log(p[onehot]).mean(), (self,), lambda dy: (dy * (p - onehot) / labels.size,))


def windows(x, k):  # (C, H, W), zeros around -> (C, k, k, H, W): the k x k pixels around each pixel
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    return np.lib.stride_tricks.sliding_window_view(padded, x.shape[1:], (1, 2)).copy()


def tiles(x):  # (C, H, W) -> (C, H/2, W/2, 4): the pixels of each 2 x 2
    return np.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], 3)


def icnn(image, labels, parameters, rng=None):
    """Fig. 1: from an image (3, S, S), S a multiple of 8, to logits (labels, S, S). Missing parameters are drawn."""

    def layer(name, x, channels, k=5):
        weight, bias = f"{name}/conv/weight", f"{name}/conv/bias"
        if weight not in parameters:
            a = np.sqrt(6 / (k * k * (len(x.y) + channels)))  # keeps activations and gradients at one size
            parameters[weight] = Maps(rng.uniform(-a, a, (channels, len(x.y), k, k)).astype("f4"))
            parameters[bias] = Maps(np.zeros(channels, "f4"))
        return x.conv(parameters[weight], parameters[bias])

    pyramid = [x := Maps(image)] + [x := x.mean_pool() for _ in range(3)]  # full, 1/2, 1/4, 1/8 size, Sec. 2.6
    rows = [layer(f"row{k}/round0", x, 8 * k).tanh() for k, x in enumerate(pyramid, 1)]
    for r in 1, 2, 3:  # interlinking, Sec. 2.2: a row's own maps, those of the finer row, those of the coarser row
        finer, coarser = [[], *([x.max_pool()] for x in rows[:3])], [*([x.upsample()] for x in rows[1:]), []]
        linked = [x.concat(*f, *c) for x, f, c in zip(rows, finer, coarser, strict=True)]
        rows = [layer(f"row{k}/round{r}", x, 8 * k).tanh() for k, x in enumerate(linked, 1)]
    y = rows[3]
    for k, channels in (3, 24), (2, 16), (1, 2 * (labels - 1) + 8):  # output integration, Sec. 2.3
        y = layer(f"integrate/row{k}", rows[k - 1].concat(y.upsample()), channels).tanh()
    return layer("output", y, labels, 9)


def eye(rng):  # draws a face; its left eye's patch (3, 64, 64), normalised, and labels (64, 64)
    pixels, shares = draw_face(rng)
    labels = shares.argmax(2) == 2
    i, j = np.clip([np.median(at) - rng.integers(26, 39) for at in np.nonzero(labels)], 0, 192).astype(int)
    x = pixels[i : i + 64, j : j + 64]
    return ((x - x.mean((0, 1))) / x.std((0, 1))).transpose(2, 0, 1).astype("f4"), labels[i : i + 64, j : j + 64]


def train(parameters, rng, faces=300, steps=300, batch=4):
    patches, velocity, mean = [eye(rng) for _ in range(faces)], {}, 0.7
    for step in range(steps + 1):
        if step % 50 == 0:  # F = 2 TP / (2 TP + FP + FN) on 30 faces that are not trained on
            p, t = np.swapaxes([(icnn(x, 2, parameters, rng).y.argmax(0), t) for x, t in patches[:30]], 0, 1)
            print(f"step {step:3}  loss {mean:.4f}  F {2 * (p & t).sum() / (p.sum() + t.sum()):.3f}", flush=True)
        for n in rng.integers(30, faces, batch):
            loss = icnn(patches[n][0], 2, parameters, rng).loss(patches[n][1])
            loss.backward(1 / batch)
            mean += (loss.y - mean) / 100
        lr = 0.02 * min(1, step / 40, 2 - 2 * step / steps)
        for name, w in parameters.items():  # Sec. 2.5: v <- 0.9 v - lr g, w <- w + v
            velocity[name] = 0.9 * velocity.get(name, 0) - lr * w.dy
            w.y, w.dy = w.y + velocity[name], 0


if __name__ == "__main__":
    with threadpool_limits(1, "blas"):  # the products are so small that two threads would mostly wait
        train({name: Maps(w) for file in sys.argv[1:] for name, w in load_file(file).items()}, np.random.default_rng(0))

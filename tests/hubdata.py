"""Data sets with the features and columns of the originals, made on the spot."""

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from retain.data import SPLITS
from retain.data.text import choose_split, list_stdlib_files

SMALL = ["--budget", "4steps", "--validation-sequences", "8", "--tracker", "None", "--device", "cpu", "--quiet"]
SMALL += ["--teacher.width", "16", "--teacher.layers", "1", "--memory.width", "16", "--cell.width", "16"]
SMALL += ["--smt.batch-size", "2", "--dmt.batch-size", "2", "--precision", "fp32"]
PARTS = ["--data.split", "0.6", "0.2", "0.2"]
"""Options of `retain train` that make a run of a second, and splits that none of a few rows leave empty."""


def stories(folder, train=300, validation=40, what="the cat"):
    """As roneneldan/TinyStories: parquet with `text`, train and validation. Every seventh row is empty or null."""
    for split, count in (("train", train), ("validation", validation)):
        texts = [f"Once there was {what} no. {i} of {split}, ünï→{i % 10}. It slept." for i in range(count)]
        texts[::7] = ["" if i % 2 else None for i in range(len(texts[::7]))]
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)
    return folder


def real(count):
    """How many of `count` rows of `stories` are texts, an empty one included."""
    return count - sum(i % 2 == 0 for i in range(-(-count // 7)))


def few_modules(root):
    """In place of `list_stdlib_files`: a file of a few thousand bytes for each split."""
    found = [name for name in list_stdlib_files(root) if 2000 < (root / name).stat().st_size < 8000]
    return sorted(next(name for name in found if choose_split(name) == split) for split in SPLITS)


def digit(i, mode="L"):
    """A 28 x 28 image, white on black: a bar whose place and height tell i."""
    image = Image.new(mode, (28, 28))
    colour = 200 if mode == "L" else (200, 200, 200)
    ImageDraw.Draw(image).rectangle((2 + 2 * (i % 10), 4, 6 + 2 * (i % 10), 23 - i // 10 % 18), fill=colour)
    return image


def mnist(folder, train=60, test=12, mode="L"):
    """As ylecun/mnist: parquet with `image` (PNG bytes) and `label`, train and test."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))})
    for split, count in (("train", train), ("test", test)):
        path = folder / "mnist" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        images = [digit(i, mode) for i in range(count)]
        for image in images:  # an edge that is gray
            image.putpixel((27, 27), 150 if mode == "L" else (150, 150, 150))
        rows = {"image": images, "label": [i % 10 for i in range(count)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return folder


def sketches(folder, count=60):
    """A folder of dark lines on white in folders by class, of several sizes, gray, colour and transparent."""
    for i in range(count):
        mode = ("RGB", "L", "RGBA")[i % 3]
        size = (60 + i % 40, 50)
        paper = {"RGB": (255, 255, 255), "L": 255, "RGBA": (0, 0, 0, 0)}[mode]
        ink = {"RGB": (0, 0, 0), "L": 0, "RGBA": (0, 0, 0, 255)}[mode]
        image = Image.new(mode, size, paper)
        ImageDraw.Draw(image).line((5, 5 + i % 40, size[0] - 5, 45 - i // 40 * 9), fill=ink, width=3)
        path = folder / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def tokenizer(path, texts):
    """A small tokenizer.json of byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    made.save(str(path))
    return path

"""Images of printed letters in the size of the digits: data of another distribution that need no download.

The fonts are those that matplotlib contains. As in MNIST, a letter is scaled into a box in the middle of the image.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import ascii_letters

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from pyrovae.data import Splits, binarize

_FAMILIES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")


def letters(sizes: Sequence[int], size: int, *, seed: int = 0) -> Splits:
    """Return letters of 16 fonts in random sizes and rotations, binarized dynamically.

    Args:
        sizes: Numbers of letters for training, validation and testing.
        size: Height and width of an image.
        seed: Seed of the letters and of the binary draws.
    """
    random = np.random.RandomState(seed)
    images = torch.from_numpy(np.stack([_letter(random, size) for _ in range(sum(sizes))]))
    train, valid, test = images.split(list(sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Splits("letters", train, binarize(valid), binarize(test), "dynamic")


def _letter(random: np.random.RandomState, size: int) -> np.ndarray:
    """Draw one letter with grey values in [0, 1], shape ``(size, size)``."""
    letter, font = random.choice(list(ascii_letters)), _fonts()[random.randint(len(_fonts()))]
    left, top, right, bottom = font.getbbox(letter)
    ink = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(ink).text((-left, -top), letter, 255, font)
    ink = ink.rotate(random.uniform(-15, 15), Image.Resampling.BILINEAR, expand=True)
    scale = size * random.uniform(0.65, 0.8) / max(ink.size)
    width, height = (max(round(side * scale), 1) for side in ink.size)
    image = Image.new("L", (size, size))
    image.paste(ink.resize((width, height), Image.Resampling.BOX), ((size - width) // 2, (size - height) // 2))
    return np.asarray(image, np.float32) / 255


@cache
def _fonts() -> list[ImageFont.FreeTypeFont]:
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    paths = {path for family in _FAMILIES for path in folder.glob(f"{family}*.ttf") if "Display" not in path.name}
    return [ImageFont.truetype(path, 100) for path in sorted(paths)]

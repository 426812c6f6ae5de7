"""The words of the embedded data: kinds of objects, colours, letters, places. Plain constants, no imports."""

from __future__ import annotations

# kind -> Noto code point, in groups whose members look alike (hard negatives come from the same group)
GROUPS: dict[str, dict[str, str]] = {
    "beast": {
        "cat": "1f431", "dog": "1f436", "mouse": "1f42d", "rabbit": "1f430", "fox": "1f98a", "bear": "1f43b",
        "panda": "1f43c", "lion": "1f981", "cow": "1f42e", "pig": "1f437", "frog": "1f438", "monkey": "1f435",
    },
    "creature": {
        "penguin": "1f427", "fish": "1f41f", "turtle": "1f422", "butterfly": "1f98b", "snail": "1f40c", "bee": "1f41d",
    },
    "fruit": {
        "apple": "1f34e", "lemon": "1f34b", "banana": "1f34c", "grapes": "1f347",
        "strawberry": "1f353", "cherry": "1f352", "pear": "1f350", "peach": "1f351",
    },
    "food": {
        "bread": "1f35e", "cheese": "1f9c0", "burger": "1f354", "pizza": "1f355", "cake": "1f370", "egg": "1f95a",
    },
    "thing": {
        "key": "1f511", "lock": "1f512", "bell": "1f514", "clock": "23f0", "book": "1f4d7",
        "phone": "1f4f1", "camera": "1f4f7", "lamp": "1f4a1", "cup": "2615", "hammer": "1f528",
    },
    "vehicle": {
        "car": "1f697", "bus": "1f68c", "train": "1f682", "boat": "26f5", "plane": "2708-fe0f", "bike": "1f6b2",
    },
}  # fmt: skip
KINDS: tuple[str, ...] = tuple(kind for group in GROUPS.values() for kind in group)
GROUP_OF: dict[str, str] = {kind: name for name, group in GROUPS.items() for kind in group}

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (206, 38, 42), "orange": (246, 138, 22), "yellow": (250, 222, 60), "green": (44, 156, 62),
    "cyan": (66, 204, 222), "blue": (36, 74, 200), "purple": (136, 58, 176), "white": (246, 246, 246),
}  # fmt: skip

# I, O, Q, V, W, Y are left out: they are confused with others at 15 pixels
LETTERS = "abcdefghjklmnprstuxz"
NUMBERS: tuple[str, ...] = ("one", "two", "three")
ORDINALS: tuple[str, ...] = ("one", "two", "three", "four")  # rows and columns of the 4x4 cells
OPTIONS: tuple[str, ...] = ("a", "b", "c", "d")
CORNERS: dict[str, tuple[int, int]] = {
    "top left": (0, 0), "top right": (0, 3), "bottom left": (3, 0), "bottom right": (3, 3),
}  # fmt: skip
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}

# What a long instruction says besides its question, and how a question names one of two images
FILLERS: tuple[str, ...] = (
    "please look at the whole picture with care before you answer",
    "there are many things in it and some of them are close to each other",
    "some tiles show the same thing more than once",
    "the ground is noisy and has small marks that mean nothing",
    "the answer is short and it can be seen in the picture",
    "do not guess and do not say more than you are asked",
)
WHICH: tuple[str, ...] = ("in the first picture", "in the second picture")

TASKS: tuple[str, ...] = ("attribute", "existence", "relation", "position", "text", "choice", "count")

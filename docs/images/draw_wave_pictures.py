"""Draws the pictures of docs/wave.md and glossary.md, in light and dark: python docs/images/draw_wave_pictures.py

Grids are in the order in which the code of the wave really runs (draw_wave.py records it).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from draw_wave import BLOCKS, SEGMENT, TILES, Cell, recorded

WIDTH, CELL, LEFT, TOP = 480, (50, 28), 84, 34
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1b1f24 } .small { font-size: 12px } .on { fill: #fff }
rect { stroke: #8a929c } .empty { fill: #fff } .done { fill: #dfe3e8 } .all { fill: #7fb3d9 } .kept { fill: #1f4e79 }
.here { fill: #f28e2b } .box { fill: none; stroke-width: 1.5 } .halo { stroke: #c0392b; stroke-width: 3 }
.line { stroke: #1b1f24; stroke-width: 1.5; fill: none } .mark { fill: #1b1f24 }
@media (prefers-color-scheme: dark) {
text { fill: #e6e9ee } rect { stroke: #6b737d } .empty { fill: #22262d } .done { fill: #3b424b } .all { fill: #4c86b3 }
.kept { fill: #9cc9ee } .kept-text { fill: #1b1f24 } .halo { stroke: #ff7b6b } .line { stroke: #e6e9ee }
.mark { fill: #e6e9ee }
}
.here-text { fill: #1b1f24 }
"""
"""Of every picture: a browser takes the dark part where the page around it is dark."""
MEANINGS = {
    "all": "every value inside the block", "kept": "saved input: one row of tokens", "here": "the tile is here now",
    "done": "done, nothing kept", "empty": "not yet", "halo": "halo: a few planes at the border",
}  # fmt: skip


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{words}</text>'


def rectangle(x: float, y: float, width: float, height: float, style: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{style}"/>'


def line(x: float, y: float, to_x: float, to_y: float, style: str = "line", arrow: bool = False) -> str:
    end = ' marker-end="url(#arrow)"' if arrow else ""
    return f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" class="{style}"{end}/>'


def corner(block: int, tile: int) -> tuple[float, float]:
    """Upper left corner of a cell: blocks upwards, tiles to the right."""
    return LEFT + tile * CELL[0], TOP + (BLOCKS - 1 - block) * CELL[1]


def grid(title: str, colours: dict[Cell, str], numbers: dict[Cell, int], halos: Iterable[Cell] = ()) -> list[str]:
    parts = [text(10, 20, title)]
    for block in range(BLOCKS):
        parts.append(text(LEFT - 8, corner(block, 0)[1] + 19, f"block {block}", "small", "end"))
        for tile in range(TILES):
            x, y = corner(block, tile)
            style = colours.get((block, tile), "empty")
            parts.append(rectangle(x, y, *CELL, style))
            if (block, tile) in numbers:
                on = {"kept": "small on kept-text", "here": "small here-text"}.get(style, "small")
                parts.append(text(x + CELL[0] / 2, y + 19, str(numbers[block, tile]), on, "middle"))
    for block, tile in halos:
        x, y = corner(block, tile)
        parts += [line(x + side, y + 4, x + side, y + CELL[1] - 4, "halo") for side in (4, CELL[0] - 4)]
    y = TOP + BLOCKS * CELL[1] + 20
    parts.append(text(LEFT + TILES * CELL[0] / 2, y, "tiles: the video, from beginning to end", "small", "middle"))
    return parts + legend([*dict.fromkeys(colours.values()), *(["halo"] if halos else [])], y + 14)


def legend(styles: list[str], y: float) -> list[str]:
    parts = []
    for number, style in enumerate(styles):
        x, line_y = 10 + number % 2 * 235, y + number // 2 * 22
        swatch = line(x + 10, line_y, x + 10, line_y + 14, "halo") if style == "halo" else (
            rectangle(x, line_y, 20, 14, style))  # fmt: skip
        parts += [swatch, text(x + 28, line_y + 12, MEANINGS[style], "small")]
    return parts


def save(name: str, height: float, parts: list[str], meaning: str) -> None:
    tip = '<path d="M0 0 8 4 0 8z" class="mark"/></marker>'
    arrow = '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    content = "\n".join(parts)
    Path(__file__).with_name(name).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" role="img" '
        f'aria-label="{meaning}">\n<style>{STYLE}</style>\n<defs>{arrow}{tip}</defs>'
        f"\n{content}\n</svg>\n"
    )


HEIGHT = TOP + BLOCKS * CELL[1] + 106


def draw_clips() -> None:
    """A video in clips; what stays inside one, and what goes over."""
    parts = [text(10, 20, "The video, 16 frames a clip")]
    for clip in range(4):
        x = 14 + clip * 116
        parts += [rectangle(x + 6 * frame, 32, 6, 26, "empty") for frame in range(16)]
        parts += [line(x + 48, 60, x + 48, 82, arrow=True), rectangle(x, 84, 96, 46, "all")]
        parts += [text(x + 48, 103, "attention", "small", "middle"), text(x + 48, 120, "and MLP", "small", "middle")]
        parts += [line(x + 48, 130, x + 48, 152, arrow=True), rectangle(x + 18, 154, 60, 30, "here")]
        parts.append(text(x + 48, 174, "adapter", "small here-text", "middle"))
        if clip < 3:
            parts += [line(x + 80, 164, x + 130, 164, "halo"), line(x + 80, 174, x + 130, 174, "halo")]
        parts.append(line(x + 48, 184, x + 48, 206, arrow=True))
    parts.append(text(10, 226, "and so on, through all blocks", "small"))
    parts += [rectangle(10, 240, 20, 14, "all"), text(38, 252, "stays inside a clip: the frozen block", "small")]
    parts += [
        line(12, 270, 28, 270, "halo"),
        text(38, 274, "crosses clips: a few narrow planes of the adapter", "small"),
    ]
    save("wave-clips.svg", 286, parts, "Blocks see one clip each; the adapters alone reach into the clips beside it")


def draw_plain() -> None:
    cells = dict.fromkeys(((b, t) for b in range(BLOCKS) for t in range(TILES)), "all")
    save(
        "wave-plain.svg",
        HEIGHT - 22,
        grid("Plain training, at the end of the forward", cells, {}),
        "All cells are kept",
    )


def draw_forward(order: list[Cell]) -> None:
    moment = order[: 2 * len(order) // 3]
    latest = {tile: max(block for block, other in moment if other == tile) for _, tile in moment}
    cells = {(b, t): "here" if latest[t] == b and b < BLOCKS - 1 else "done" for b, t in moment}
    cells |= {(b, t): "kept" for b, t in moment if b % SEGMENT == 0}
    numbers = {cell: number + 1 for number, cell in enumerate(moment)}
    parts = grid("The wave, two thirds through the forward", cells, numbers, moment)
    save("wave-forward.svg", HEIGHT, parts, "Tiles in flight stand on a diagonal; numbers are the order of the work")


def draw_kept() -> None:
    every = [(b, t) for b in range(BLOCKS) for t in range(TILES)]
    cells = {cell: "kept" if cell[0] % SEGMENT == 0 else "done" for cell in every}
    parts = grid("The wave, at the end of the forward", cells, {}, every)
    save("wave-kept.svg", HEIGHT, parts, "Kept are a row of tokens at every fourth block, and the halos")


def draw_backward(events: list[tuple[str, int, int]]) -> None:
    moment = events[: events.index(("backward", BLOCKS - SEGMENT, TILES // 2 - 1)) + 1]
    down = [(block, tile) for kind, block, tile in moment if kind == "backward"]
    cells: dict[Cell, str] = {(b, t): "kept" for b in range(0, BLOCKS, SEGMENT) for t in range(TILES)}
    cells |= {(b, t): "all" for kind, b, t in moment if kind == "recompute"} | dict.fromkeys(down, "done")
    cells |= {(min(b for b, other in down if other == t), t): "here" for _, t in down}
    numbers = {cell: number + 1 for number, cell in enumerate(dict.fromkeys(down))}
    parts = grid("The wave, half through the last segment's backward", cells, numbers,
                 [(b, t) for b in range(BLOCKS) for t in range(TILES)])  # fmt: skip
    save("wave-backward.svg", HEIGHT, parts, "Gradients come down in a skewed wave; numbers are the order of the work")


def draw_host() -> None:
    """Draw what is on the device at a moment, and what may wait on the host."""
    parts = [rectangle(10, 30, 200, 190, "box"), text(20, 22, "GPU"), rectangle(270, 30, 200, 190, "box")]
    parts.append(text(280, 22, "host memory"))
    for row, (here, there) in enumerate((
        ("this tile, and the next", "all other saved inputs"), ("halos of this tile", "all other halos"),
        ("frames of two tiles", "all other frames"), ("blocks of one segment", "all other frozen weights"),
        ("64 MB of parameters", "AdamW's state, the average"),
    )):  # fmt: skip
        y = 44 + row * 34
        parts += [rectangle(20, y, 180, 26, "here"), text(110, y + 18, here, "small here-text", "middle")]
        parts += [rectangle(280, y, 180, 26, "kept"), text(370, y + 18, there, "small on kept-text", "middle")]
        parts.append(f'<path d="M278 {y + 13}H204" class="line" marker-end="url(#arrow)"/>')
        if row in (0, 1, 4):
            parts.append(f'<path d="M204 {y + 19}H276" class="line" marker-end="url(#arrow)"/>')
    save(
        "wave-host.svg",
        232,
        parts,
        "What is worked on is on the GPU, the rest waits on the host and comes a tile ahead",
    )


def draw_words() -> None:
    """Draw what is cut out of what: a video, a window, clips, tubelets, features."""
    levels = (("video", 1, "empty", 10, 460), ("window", 1, "done", 110, 240), ("clips", 5, "all", 110, 240),
              ("a clip's tubelets", 8, "here", 158, 144), ("a feature each", 8, "kept", 158, 144))  # fmt: skip
    parts = []
    for level, (name, count, style, x, width) in enumerate(levels):
        y = 22 + level * 58
        parts.append(text(10, y, name, "small"))
        share = width / count
        parts += [rectangle(x + share * part, y + 6, share, 22, style) for part in range(count)]
        if level < len(levels) - 1:
            _, _, _, below, below_width = levels[level + 1]
            # A clip is one of five, the features are all of its tubelets.
            left, right = (206, 254) if level == 2 else (below, below + below_width)
            parts += [line(left, y + 28, below, y + 64), line(right, y + 28, below + below_width, y + 64)]
    save("glossary.svg", 306, parts, "A video, a window of it, its clips, the tubelets of a clip, and their features")


def main() -> None:
    forward, backward = recorded()
    draw_clips()
    draw_plain()
    draw_forward(forward)
    draw_kept()
    draw_backward(backward)
    draw_host()
    draw_words()


if __name__ == "__main__":
    sys.exit(main())

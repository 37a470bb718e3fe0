"""Draws the pictures of the documentation: docs/race.svg and docs/decides.svg.

`python scripts/pictures.py`. Static SVG without scripts, fonts or anything from elsewhere, so that
a picture looks the same in the site, in a repository's view and in an editor. Each has a background
of its own, for light and dark pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"

SANS: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
MONO: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

INK: Final = "#1f2937"
GREY: Final = "#6b7280"
PLAIN: Final = ("#ffffff", "#9ca3af")
BLUE: Final = ("#e8f0fe", "#3b6fd4")
GREEN: Final = ("#e6f6ec", "#1f8a4c")
RED: Final = ("#fdeaea", "#c0392b")
AMBER: Final = ("#fff5dd", "#b7791f")
"""Fill and line."""


@dataclass
class Picture:
    """One SVG, drawn from the back to the front.

    Args:
        title: What a screen reader says.
        width: In pixels.
        height: In pixels.
    """

    title: str
    width: int
    height: int
    _parts: list[str] = field(default_factory=list)

    def box(
        self, x: int, y: int, width: int, height: int, *lines: str, look: tuple[str, str] = PLAIN
    ) -> None:
        """A box with centred lines; one in backticks is code, the first of several is strong."""
        fill, stroke = look
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" '
            f'fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
        )
        top = y + height / 2 - (len(lines) - 1) * 10 + 5
        for number, line in enumerate(lines):
            is_strong = number == 0 and len(lines) > 1
            self.text(x + width // 2, round(top + number * 20), line, is_strong=is_strong)

    def text(
        self,
        x: int,
        y: int,
        line: str,
        *,
        anchor: str = "middle",
        colour: str = INK,
        is_strong: bool = False,
    ) -> None:
        """One line of text."""
        is_code = line.startswith("`")
        weight = ' font-weight="600"' if is_strong else ""
        family = MONO if is_code else SANS
        size = 13 if is_code else 15
        self._parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-family="{family}" '
            f'font-size="{size}" fill="{colour}"{weight}>{escape(line.strip("`"), quote=False)}'
            "</text>"
        )

    def arrow(self, *points: tuple[int, int], colour: str = GREY, is_dashed: bool = False) -> None:
        """A line through points, with a head at its end."""
        path = " ".join(f"{'L' if number else 'M'}{x} {y}" for number, (x, y) in enumerate(points))
        dashes = ' stroke-dasharray="5 4"' if is_dashed else ""
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
        )
        (from_x, from_y), (x, y) = points[-2:]
        along_x = (x > from_x) - (x < from_x)
        along_y = (y > from_y) - (y < from_y)
        if abs(x - from_x) > abs(y - from_y):
            along_y = 0
        elif abs(y - from_y) > abs(x - from_x):
            along_x = 0
        back_x, back_y = x - 9 * along_x, y - 9 * along_y
        wing_x, wing_y = 5 * along_y, 5 * along_x
        self._parts.append(
            f'<path d="M{x} {y} L{back_x + wing_x} {back_y + wing_y} '
            f'L{back_x - wing_x} {back_y - wing_y} Z" fill="{colour}"/>'
        )

    def svg(self) -> str:
        """The file."""
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n"
            f'<rect width="{self.width}" height="{self.height}" rx="12" fill="#f8fafc"/>\n'
            f"{body}\n</svg>\n"
        )


def race() -> Picture:
    """Three replicas of a gateway, one of which lacks the route."""
    picture = Picture(
        "The control plane says that the job runs. Two replicas of the gateway know its route, the "
        "third answers 404.",
        640,
        318,
    )
    picture.box(190, 22, 220, 226)
    picture.text(300, 44, "API gateway", colour=GREY)
    for top, name, known, look in (
        (56, "replica 1", "knows the route", GREEN),
        (118, "replica 2", "knows the route", GREEN),
        (180, "replica 3", "no route yet", RED),
    ):
        picture.box(206, top, 188, 54, name, known, look=look)
    picture.box(14, 176, 122, 62, "your run", "tinker SDK", look=BLUE)
    picture.box(486, 84, 140, 62, "trainer", "running", look=GREEN)
    picture.box(474, 186, 154, 62, "control plane", "`JOB_STATE_RUNNING`", look=GREEN)
    picture.arrow((136, 198), (206, 198), colour=BLUE[1])
    picture.arrow((206, 220), (136, 220), colour=RED[1])
    picture.text(163, 244, "404", colour=RED[1], is_strong=True)
    picture.arrow((394, 83), (440, 83), (440, 107), (486, 107), colour=GREEN[1])
    picture.arrow((394, 145), (440, 145), (440, 123), (486, 123), colour=GREEN[1])
    picture.text(320, 276, "The SDK takes every 404 as permanent, and the run dies:")
    picture.text(320, 300, "`Trainer job not found or not running`", colour=RED[1])
    return picture


LEFT: Final = 64
STEP_WIDTH: Final = 306
END: Final = 436
END_WIDTH: Final = 192
MIDDLE: Final = LEFT + STEP_WIDTH // 2


def decides() -> Picture:
    """The way of one request, from top to bottom; how it can end stands at the right."""
    picture = Picture("How the guard decides over one request", 640, 876)

    def step(y: int, *lines: str, look: tuple[str, str] = PLAIN, height: int = 56) -> None:
        picture.box(LEFT, y, STEP_WIDTH, height, *lines, look=look)

    def end(y: int, *lines: str, look: tuple[str, str] = PLAIN, label: str = "") -> None:
        picture.arrow((LEFT + STEP_WIDTH, y + 28), (END, y + 28))
        picture.box(END, y, END_WIDTH, 56, *lines, look=look)
        picture.text(LEFT + STEP_WIDTH + 32, y + 20, label, colour=GREY)

    def down(y: int, label: str = "") -> None:
        picture.arrow((MIDDLE, y - 30), (MIDDLE, y))
        picture.text(MIDDLE + 8, y - 10, label, anchor="start", colour=GREY)

    step(16, "A request of the SDK", look=BLUE, height=40)
    down(86)
    step(86, "On a trainer's route?", "read from the URL")
    end(86, "sent as it is", "nothing is asked", label="no")
    down(172, "yes")
    step(172, "Has the route answered before?", "if so, no warmup")
    picture.arrow((LEFT, 200), (34, 200), (34, 372), (LEFT, 372))
    picture.text(48, 192, "yes", colour=GREY)
    down(258, "no")
    step(258, "Warmup", "3 probes on its own connection", look=AMBER)
    end(258, "the 404", "job gone, or 120 s over", look=RED)
    down(344)
    step(344, "Send it", "a healthy request ends here", look=BLUE)
    end(344, "the answer", "`ok`", look=GREEN)
    down(430, "404")
    step(430, "Who wrote the 404?", "read from its body")
    end(430, "the 404, at once", "`genuine_not_found`", look=RED, label="trainer")
    down(516, "gateway, or unknown")
    step(516, "Control plane: does the job run?", "asked once for all requests")
    end(516, "the 404", "`genuine_not_found`", look=RED, label="gone")
    picture.arrow((LEFT, 544), (34, 544), (34, 716), (LEFT, 716))
    picture.text(46, 536, "runs", colour=GREY)
    down(602, "no usable answer")
    step(602, "Does a probe reach the trainer?", "over a new connection")
    end(602, "the 404", "`unverified`", look=RED, label="no")
    down(688, "yes")
    step(688, "Routing race: find a routed", "connection, one probes for all", look=AMBER)
    down(774)
    step(774, "Resend the same bytes", "same seq_id, same key", look=BLUE)
    end(774, "the answer", "`recovered`", look=GREEN)
    picture.arrow((LEFT, 802), (14, 802), (14, 458), (LEFT, 458), is_dashed=True)
    again = "another 404: from “Who wrote the 404?”, for 30 s in all; then exhausted"
    picture.text(14, 856, again, anchor="start", colour=GREY)
    return picture


PICTURES: Final = {"race.svg": race, "decides.svg": decides}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (DOCS / name).write_text(draw().svg())

"""The diagrams of the documentation as SVG files: boxes with dark text on light colours, lines in grey, so that they read on both themes.

python tools/docs_site/diagrams.py        # writes docs/papers/*.svg and docs/guides/masks.svg
"""

from __future__ import annotations

from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
WIDTH = 680
LINE, TEXT, FREE = "#8089a8", "#1b2140", "#7d86a6"
HISTORY, CANDIDATE, PART, HEAD, LATE, OUT = "#c5cdf5", "#ffd9a8", "#d9def2", "#bfe6d2", "#f3cfe0", "#cfe8f7"


class Drawing:
    """Boxes, arrows and labels at given places."""

    def __init__(self, height: int, title: str, width: int = WIDTH) -> None:
        self.size, self.title, self.parts = (width, height), title, list[str]()

    def box(self, x: float, y: float, w: float, text: str, fill: str, h: float = 36, note: str = "") -> None:
        self.parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="7" fill="{fill}"/>')
        middle = x + w / 2
        if note:
            self._text(middle, y + h / 2 - 4, text, TEXT, 14, "600")
            self._text(middle, y + h / 2 + 14, note, TEXT, 12)
        else:
            self._text(middle, y + h / 2 + 5, text, TEXT, 14, "600" if w > 60 else "400")

    def label(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        self._text(x, y, text, FREE, 13, anchor=anchor)

    def arrow(self, *points: tuple[float, float]) -> None:
        path = " ".join(f"{'M' if i == 0 else 'L'}{x} {y}" for i, (x, y) in enumerate(points))
        self.parts.append(f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#tip)"/>')

    def cell(self, x: float, y: float, size: float, fill: str, opacity: float = 1.0) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{size - 1.5}" height="{size - 1.5}" rx="2" fill="{fill}" fill-opacity="{opacity}"/>'
        )

    def _text(self, x: float, y: float, text: str, fill: str, size: int, weight: str = "400", anchor: str = "middle") -> None:
        style = f'fill="{fill}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
        self.parts.append(f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>')

    def save(self, path: Path) -> None:
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            'font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif">\n'
            f"<title>{escape(self.title)}</title>\n"
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0L10 5L0 10z" fill="{LINE}"/></marker></defs>\n'
        )
        path.write_text(head + "\n".join(self.parts) + "\n</svg>\n", encoding="utf-8")


def _tokens(d: Drawing, y: float, pairs: int, candidates: int, interleaved: bool = True) -> tuple[float, float]:
    """A row of event tokens, then candidates; returns the middles of both groups."""
    x, step = 40.0, 46.0
    for event in range(1, pairs + 1):
        d.box(x, y, 40, f"x{event}", HISTORY, 34)
        x += step
        if interleaved:
            d.box(x, y, 40, f"a{event}", "#e3d5f7", 34)
            x += step
    history = (40 + x - 6) / 2
    x += 34
    begin = x
    for candidate in range(1, candidates + 1):
        d.box(x, y, 40, f"c{candidate}", CANDIDATE, 34)
        x += step
    d.label(history, y - 10, "history: item x, action a" if interleaved else "history: item and action")
    d.label((begin + x - 6) / 2, y - 10, "candidates")
    return history, (begin + x - 6) / 2


def cadet() -> Drawing:
    d = Drawing(458, "CADET: tokens, gated decoder blocks, towers by position")
    h, c = _tokens(d, 34, 4, 3)
    d.arrow((h, 68), (h, 96))
    d.arrow((c, 68), (c, 96))
    d.box(
        40,
        98,
        600,
        "DecoderBlock  × num_layers",
        PART,
        62,
        "gates on X, Q and K · rotation by Unix time · each token sees events older than the delay",
    )
    d.arrow((340, 160), (340, 186))
    d.box(160, 188, 360, "LN, read at item tokens and candidates", PART)
    d.arrow((340, 224), (340, 262))
    d.box(500, 226, 140, "late context", LATE, 30)
    d.arrow((500, 241), (346, 241))
    for at, (name, note) in enumerate((("tower 1", "position 1"), ("tower 2", "positions 2 to 4"), ("tower 3", "positions 5 and more"))):
        x = 40 + at * 205
        d.arrow((340, 264), (x + 95, 290))
        d.box(x, 292, 190, name, HEAD, 50, note)
        d.arrow((x + 95, 342), (x + 95, 372))
        d.box(x + 15, 374, 160, f"p{at + 1} = sigmoid(s{at + 1})", OUT)
    d.label(340, 438, "training: only the tower of the position shown has a loss · serving: all are returned, one is the score")
    return d


def feed_sr() -> Drawing:
    d = Drawing(470, "Feed-SR: interleaved tokens, decoder blocks, late fusion, parallel DCN head")
    h, c = _tokens(d, 34, 4, 3)
    d.arrow((h, 68), (h, 96))
    d.arrow((c, 68), (c, 96))
    d.box(
        40,
        98,
        600,
        "decoder block  × num_layers",
        PART,
        62,
        "pre-LN · rotation by index · RescaleAndAdd: x + α f(x) · delay or session mask",
    )
    d.arrow((340, 160), (340, 186))
    d.box(180, 188, 320, "LN, read at posts and candidates", PART)
    d.arrow((340, 224), (340, 262))
    d.box(500, 226, 140, "late context", LATE, 30)
    d.arrow((500, 241), (346, 241))
    d.box(100, 290, 220, "cross network", HEAD, 40)
    d.box(360, 290, 220, "MLP", HEAD, 40)
    d.arrow((340, 264), (210, 288))
    d.arrow((340, 264), (470, 288))
    d.arrow((210, 330), (330, 356))
    d.arrow((470, 330), (350, 356))
    d.box(190, 358, 300, "one logit a task", OUT)
    d.box(510, 358, 130, "+ o[position]", LATE)
    d.arrow((510, 376), (492, 376))
    d.arrow((340, 394), (340, 416))
    d.label(340, 436, "training: offset of the position shown · serving: every candidate at position 5")
    return d


def ligr() -> Drawing:
    d = Drawing(480, "LiGR: gated blocks, point-wise logits, set-wise attention over the best of the list")
    h, c = _tokens(d, 34, 5, 4, interleaved=False)
    d.arrow((h, 68), (h, 96))
    d.arrow((c, 68), (c, 96))
    d.box(
        40,
        98,
        600,
        "LiGRBlock  × num_layers",
        PART,
        62,
        "x + F(LN x) ⊙ sigmoid(x W + b), F = attention, then SwiGLU · a candidate sees history and itself",
    )
    d.arrow((340, 160), (340, 186))
    d.box(200, 188, 280, "LN, read at candidates", PART)
    d.arrow((270, 224), (190, 252))
    d.box(80, 254, 220, "head", HEAD, 40)
    d.arrow((190, 294), (190, 320))
    d.box(80, 322, 220, "point-wise logits s", OUT)
    d.arrow((410, 224), (490, 252))
    d.box(370, 254, 240, "SetwiseAttention", PART, 50, "the top_k of s see each other")
    d.arrow((300, 330), (350, 330), (350, 280), (368, 280))
    d.arrow((490, 304), (490, 320))
    d.box(370, 322, 240, "set head: logits t", OUT)
    d.arrow((190, 358), (300, 392))
    d.arrow((490, 358), (380, 392))
    d.box(180, 394, 320, "merge", HEAD, 50, "'replace': t for the top_k, s for all others")
    return d


def amortized() -> Drawing:
    d = Drawing(470, "AmortizedDLRM: the history is encoded once, candidates attend to its keys and values")
    d.label(180, 22, "once a request")
    d.label(500, 22, "once a candidate")
    d.box(60, 34, 240, "history h1 ... hL", HISTORY)
    d.box(380, 34, 240, "candidates c1 ... cN", CANDIDATE)
    d.arrow((180, 70), (180, 96))
    d.arrow((500, 70), (500, 96))
    d.box(60, 98, 240, "block 1", PART, 46, "queries, keys, values of h")
    d.box(380, 98, 240, "block 1", PART, 46, "queries of c, keys and values of h")
    d.arrow((300, 121), (378, 121))
    d.label(339, 114, "K, V")
    d.arrow((180, 144), (180, 168))
    d.arrow((500, 144), (500, 168))
    d.box(60, 170, 240, "block 2", PART, 46, "the cache: K and V of each block")
    d.box(380, 170, 240, "block 2", PART, 46, "the same weights")
    d.arrow((300, 193), (378, 193))
    d.label(339, 186, "K, V")
    d.arrow((500, 216), (500, 246))
    d.box(380, 248, 240, "r1 ... rN", OUT)
    d.box(60, 248, 240, "numbers, ids, context", LATE)
    d.arrow((500, 284), (360, 310))
    d.arrow((180, 284), (320, 310))
    d.box(180, 312, 320, "x = [BN(numbers) ; embeddings ; r]", PART)
    d.arrow((340, 348), (230, 374))
    d.arrow((340, 348), (450, 374))
    d.box(130, 376, 200, "cross net", HEAD)
    d.box(350, 376, 200, "MLP", HEAD)
    d.arrow((230, 412), (320, 432))
    d.arrow((450, 412), (360, 432))
    d.box(240, 434, 200, "one logit a task", OUT, 32)
    return d


def lirank() -> Drawing:
    d = Drawing(476, "LiRank, preset feed: cross net next to a gated MLP, two towers, isotonic calibration")
    for x, name, note, fill in (
        (40, "numbers", "batch normalisation", LATE),
        (250, "ids, categories", "embedding tables", CANDIDATE),
        (460, "history", "HistoryEncoder, concat", HISTORY),
    ):
        d.box(x, 16, 180, name, fill, 50, note)
        d.arrow((x + 90, 66), (340 + (x - 250) / 4, 96))
    d.box(200, 98, 280, "x, all joined", PART)
    d.arrow((300, 134), (210, 160))
    d.arrow((380, 134), (470, 160))
    d.box(90, 162, 240, "Residual DCN", HEAD, 50, "low-rank cross ‖ attention cross")
    d.box(350, 162, 240, "MLP 4 x 100", HEAD, 50, "dense gates")
    d.arrow((210, 212), (300, 238))
    d.arrow((470, 212), (380, 238))
    d.box(200, 240, 280, "h = [cross net(x) ; MLP(x)]", PART)
    d.arrow((300, 276), (210, 302))
    d.arrow((380, 276), (470, 302))
    d.box(90, 304, 240, "click tower", HEAD, 50, "click, long dwell, skip")
    d.box(350, 304, 240, "contribution tower", HEAD, 50, "like, comment, share")
    for x in (210, 470):
        d.arrow((x, 354), (x, 378))
        d.box(x - 120, 380, 240, "isotonic layer a task", PART, 34)
        d.arrow((x, 414), (x, 434))
        d.box(x - 120, 436, 240, "logits, + random effect[id]", OUT, 34)
    return d


def masks() -> Drawing:
    """Four masks of one example: four events of two tokens, two sessions, then three candidates."""
    d = Drawing(430, "Four masks as two intervals a token", 580)
    n, size = 11, 14
    event = [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6]
    candidate = [False] * 8 + [True] * 3
    session = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]

    def own(i: int, j: int) -> bool:
        return event[i] == event[j] and j <= i

    def causal(i: int, j: int) -> bool:
        return i == j or (j < i and not candidate[j])

    def delayed(i: int, j: int) -> bool:  # events 2 and 3 are close in time
        hidden = not candidate[i] and event[i] == 3 and event[j] == 2
        return own(i, j) or (j < i and not candidate[j] and event[j] < event[i] and not hidden)

    def sessions(i: int, j: int) -> bool:
        return own(i, j) or (session[j] < session[i] and not candidate[j])

    def setwise(i: int, j: int) -> bool:
        return candidate[i] and candidate[j]

    panels = (
        ("causal, candidates alone", causal),
        ("delay: a young event is hidden", delayed),
        ("session: own session is hidden", sessions),
        ("set-wise: candidates see each other", setwise),
    )
    for at, (name, sees) in enumerate(panels):
        x0, y0 = 80 + (at % 2) * 280, 30 + (at // 2) * 205
        d.label(x0 + n * size / 2, y0 - 10, name)
        for i in range(n):
            for j in range(n):
                fill = (CANDIDATE if candidate[i] else "#8c9eff") if sees(i, j) else LINE
                d.cell(x0 + j * size, y0 + i * size, size, fill, 1.0 if sees(i, j) else 0.16)
        d.label(x0 - 8, y0 + 4 * size, "query", "end")
        d.label(x0 + n * size / 2, y0 + n * size + 16, "key")
    return d


def main() -> None:
    for name, draw in (("cadet", cadet), ("feed-sr", feed_sr), ("ligr", ligr), ("amortized", amortized), ("lirank", lirank)):
        draw().save(DOCS / "papers" / f"{name}.svg")
    masks().save(DOCS / "guides" / "masks.svg")


if __name__ == "__main__":
    main()

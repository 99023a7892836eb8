#!/usr/bin/env python3
"""Draws benches/throughput.svg and benches/depth.svg from what `cargo bench` measured. Standard library only.

    benches/plot.py [DIRECTORY]     where the raw data is, by default target/bench-data
"""
import csv
import math
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).parent
DATA = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "target/bench-data"
COLOURS = {
    "treelock": "#c0392b", "floor": "#555555", "plain counters": "#555555", "lockable": "#2e7d32",
    "mutex + map": "#1f5fa8", "dashmap": "#9a6a00", "RwLock": "#7b4ba0",
}
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 420, 70, 56, 170, 52


def measured(bench, case, unit):
    """What the run was, and for each peer the median at each x."""
    values = {}
    with open(DATA / f"{bench}.csv") as file:
        about = file.readline().strip("# \n")
        for row in csv.DictReader(file):
            if case(row["case"]) and row["unit"] == unit:
                values.setdefault(row["peer"], {}).setdefault(int(row["x"]), []).append(float(row["value"]))
    medians = {
        peer: [(x, statistics.median(found)) for x, found in sorted(by_x.items())] for peer, by_x in values.items()
    }
    return about, medians


def draw(name, title, x_label, y_label, about, lines, logarithmic):
    xs = sorted({x for points in lines.values() for x, _ in points})
    ys = [y for points in lines.values() for _, y in points]
    if logarithmic:
        low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
        ticks = [10.0 ** power for power in range(low, high + 1)]
        scale = lambda y: (math.log10(y) - low) / (high - low)
    else:
        step = 10 ** math.floor(math.log10(max(ys)))
        step = next(s for s in (step / 5, step / 2, step, step * 2) if max(ys) / s <= 7)
        ticks = [step * n for n in range(math.ceil(max(ys) / step) + 1)]
        scale = lambda y: y / ticks[-1]
    span = max(xs[-1] - xs[0], 1)
    at_x = lambda x: LEFT + (x - xs[0]) / span * (WIDTH - LEFT - RIGHT)
    at_y = lambda y: HEIGHT - BOTTOM - scale(y) * (HEIGHT - TOP - BOTTOM)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="16" font-weight="bold" fill="#222">{title}</text>',
        f'<text x="{LEFT}" y="42" font-size="11" fill="#666">{about}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle" fill="#222">{x_label}</text>',
        f'<text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle" '
        f'fill="#222">{y_label}</text>',
    ]
    for tick in ticks:
        y = at_y(tick)
        out.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#444">{tick:,.10g}</text>')
    for x in xs:
        out.append(f'<text x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle" fill="#444">{x}</text>')
    # Labels at the ends of the lines, pushed apart where they would overlap.
    below = TOP - 100.0
    for peer, points in sorted(lines.items(), key=lambda line: at_y(line[1][-1][1])):
        colour, width = COLOURS.get(peer, "#888888"), 3 if peer == "treelock" else 1.6
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        out += [f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
        x, y = points[-1]
        below = max(at_y(y) + 4, below + 15)
        weight = ' font-weight="bold"' if peer == "treelock" else ""
        out.append(f'<text x="{at_x(x) + 10:.1f}" y="{below:.1f}" fill="{colour}"{weight}>{peer} {y:,.{0 if y >= 100 else 1}f}</text>')
    (HERE / f"{name}.svg").write_text("\n".join(out) + "\n</svg>\n")
    print(HERE / f"{name}.svg")


draw(
    "throughput", "Writes in disjoint sub-trees below 4 shared ancestors", "threads", "million lock + unlock a second",
    *measured("scaling", lambda case: case == "disjoint", "M/s"), logarithmic=False,
)
draw(
    "depth", "One thread locks and unlocks one path", "nodes from the root to the path", "ns per lock + unlock",
    *measured("uncontended", lambda case: case.startswith("write str") and case.endswith("nodes"), "ns"),
    logarithmic=True,
)

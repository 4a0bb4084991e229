"""A parser of the captions of the embedded data set, and the question whether all that one states is true.

``python -m tests.shapes_grammar RUN [LEAST]`` counts the val captions of an evaluated run that are true in
every object, size, colour, relation and count; exit code 1 where their share is below LEAST.

Written from the grammar in :mod:`fastrnn.data.shapes`, and independent of how captions are made there.
"""

import json
import re
import sys
from pathlib import Path

THING = r"(?:(small|large) )?(red|orange|yellow|green|blue|purple) (circle|square|triangle)"
A = rf"an? ({THING})"
ONE = rf"one ({THING})"
RELATION = r"(left of|right of|above|below)"
FORMS = [
    rf"{A}",
    rf"there is {A}",
    rf"{ONE}",
    rf"the picture shows {A}",
    rf"(only) {A}",
    rf"{A} {RELATION} {A}",
    rf"{A} {RELATION} {A} that is {RELATION} {A}",
    rf"there is {A} {RELATION} {A}",
    rf"there is {A} {RELATION} {A} and {A}",
    rf"the picture shows {A} {RELATION} {A}",
    rf"{ONE} and {ONE}",
    rf"{ONE} and {ONE} and {ONE}",
    rf"(both) {A} and {A}",
    rf"(three) shapes {A} {A} and {A}",
]
COUNTS = {"only": 1, "both": 2, "three": 3}
HOLDS = {
    "left of": lambda a, b: a["x"] < b["x"],
    "right of": lambda a, b: a["x"] > b["x"],
    "above": lambda a, b: a["y"] < b["y"],
    "below": lambda a, b: a["y"] > b["y"],
}


def parse(caption):
    """What a caption states, or None if it is not in the grammar.

    Things as (size or None, colour, shape); relations between one and the next, by the number of the first;
    how many things there are in all, or None.
    """
    if re.search(r"\ba orange|\ban (?!orange)", caption):
        return None
    if not any(re.fullmatch(form, caption) for form in FORMS):
        return None
    things, relations = [], {}
    for match in re.finditer(rf"{THING}|{RELATION}", caption):
        size, colour, shape, relation = match.groups()
        if relation:
            relations[len(things) - 1] = relation
        else:
            things.append((size, colour, shape))
    return things, relations, COUNTS.get(caption.split()[0])


def is_true(caption, objects):
    """Whether a caption is in the grammar and all that it states holds in a scene of ``scenes.json``."""
    stated = parse(caption)
    if stated is None:
        return False
    things, relations, count = stated
    found = []
    for size, colour, shape in things:
        matches = [
            o for o in objects if (o["colour"], o["shape"]) == (colour, shape) and size in (None, o["size"])
        ]
        if not matches or matches[0] in found:
            return False
        found.append(matches[0])
    return count in (None, len(objects)) and all(
        HOLDS[relation](found[i], found[i + 1]) for i, relation in relations.items()
    )


def share_of_true_captions(run):
    """The share of a run's val captions, as ``fastrnn evaluate`` wrote them, that are wholly true."""
    evaluation = json.loads((Path(run) / "evaluation-val.json").read_text())
    scenes = json.loads((Path(evaluation["data"]) / "scenes.json").read_text())["val"]
    objects = {scene["picture"]: scene["objects"] for scene in scenes}
    captions = evaluation["captions"]
    assert len(captions) == len(scenes)
    return sum(is_true(written["caption"], objects[written["image"]]) for written in captions) / len(captions)


if __name__ == "__main__":
    share = share_of_true_captions(sys.argv[1])
    print(f"{share:.1%} of the val captions are true in everything they state")
    sys.exit(share < float(sys.argv[2] if len(sys.argv) > 2 else 0))

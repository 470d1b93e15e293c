"""Answers to questions about a wide scene, found anew from its plain data and a question's facts."""

import re
from typing import Any

from ddit.world.wide import WIDE_CLASSES

WORDS = ("zero", "one", "two", "three", "four", "five", "six")
PLURALS = {
    "bus": "buses", "sheep": "sheep", "couch": "couches", "person": "people", "scissors": "pairs of scissors",
    "wine glass": "wine glasses", "lorry": "lorries",
}  # fmt: skip
OTHER_NAMES = {
    "plane": "airplane", "aeroplane": "airplane", "rucksack": "backpack", "bike": "bicycle", "automobile": "car",
    "phone": "cell phone", "mobile phone": "cell phone", "smartphone": "cell phone", "sofa": "couch", "mug": "cup",
    "doughnut": "donut", "purse": "handbag", "motorbike": "motorcycle", "human": "person", "plant": "potted plant",
    "ball": "sports ball", "teddy": "teddy bear", "stoplight": "traffic light", "lorry": "truck", "television": "tv",
    "tv set": "tv",
}  # fmt: skip


def relations(a: dict, b: dict) -> set[str]:
    """GenEval's rule, from the boxes."""
    (al, at, ar, ab), (bl, bt, br, bb) = a["box"], b["box"]
    dx, dy = (al + ar - bl - br) / 2, (at + ab - bt - bb) / 2
    slack_x, slack_y = 0.1 * (ar - al + br - bl), 0.1 * (ab - at + bb - bt)
    length = (dx * dx + dy * dy) ** 0.5
    near_x = max(abs(dx) - slack_x, 0) / length if length else 0
    near_y = max(abs(dy) - slack_y, 0) / length if length else 0
    found = set()
    if near_x > 0.5:
        found.add("left of" if dx < 0 else "right of")
    if near_y > 0.5:
        found.add("above" if dy < 0 else "below")
    return found


def answer(scene: dict[str, Any], kind: str, facts: dict[str, Any]) -> str:
    """The answer, by a plain reading of the scene's data (`WideScene.to_json`)."""
    objects = scene["objects"]
    name = facts.get("class")
    own = [o for o in objects if o["class"] == name]
    yes = {True: "yes", False: "no"}
    pair = [next((o for o in objects if o["class"] == n), None) for n in facts.get("classes", [])]
    x, y = (
        (o["tile"][i] + o["tile"][2] / 2) / scene["size"] if (o := (own or [None])[0]) else 0 for i in (0, 1)
    )
    match kind:
        case "exists":
            return yes[bool(own)]
        case "absent":
            return yes[not own]
        case "exists_color":
            return yes[any(o["color"] == facts["color"] for o in own)]
        case "exists_count":
            return yes[len(own) == facts["count"]]
        case "count":
            return WORDS[len(own)]
        case "count_all":
            return WORDS[len(objects)]
        case "count_color":
            return WORDS[sum(o["color"] == facts["color"] for o in objects)]
        case "color" | "color_choice":
            return " ".join({o["color"] for o in own})
        case "color_check":
            return yes[{o["color"] for o in own} == {facts["color"]}]
        case "which_color":
            return " ".join({o["class"] for o in objects if o["color"] == facts["color"]})
        case "binding":
            return yes[[o["color"] for o in pair if o] == facts["colors"]]
        case "what":
            return " ".join(o["class"] for o in objects)
        case "list":
            return ", ".join(sorted({o["class"] for o in objects}))
        case "where":
            (base,) = own
            there = {o["class"] for o in objects if o is not base and facts["relation"] in relations(o, base)}
            return " ".join(there)
        case "relation":
            assert pair[0] is not None
            assert pair[1] is not None
            return yes[facts["relation"] in relations(pair[0], pair[1])]
        case "place":
            row = ("top", "", "bottom")[int(3 * y)]
            column = ("left", "", "right")[int(3 * x)]
            return f"{row} {column}".strip() or "middle"
        case "side":
            return "left" if x < 0.5 else "right"
        case "side_check":
            on = {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}
            return yes[on[facts["side"]]]
        case "at_side":
            axis = 0 if facts["side"] in ("left", "right") else 1
            low = facts["side"] in ("left", "top")
            middle = [(o["tile"][axis] + o["tile"][2] / 2) / scene["size"] for o in objects]
            return " ".join({o["class"] for o, v in zip(objects, middle, strict=True) if (v < 0.5) == low})
        case "size":
            size = own[0]["tile"][2] * 64 / scene["size"]
            return "small" if size < 23 else "medium" if size < 36 else "large" if size < 50 else "huge"
        case "bigger":
            ordered = sorted((o for o in pair if o), key=lambda o: o["tile"][2])
            return ordered[0 if facts["smaller"] else 1]["class"]
        case "style":
            return " ".join({o["style"] for o in own})
        case "ground_color":
            return scene["ground"]["color"]
        case "ground_kind":
            return scene["ground"]["kind"]
        case "both":
            return yes[all(pair)]
        case "either":
            return yes[any(pair)]
        case "same_color":
            return yes[len({o["color"] for o in pair if o}) == 1]
        case "unanswerable":
            return "a class is there" if own else "unanswerable"
    raise AssertionError(kind)


def named_classes(text: str) -> set[str]:
    """The classes that a text names, the longest names first ("teddy bear" is no bear)."""
    forms = {PLURALS.get(n, n + "s"): n for n in WIDE_CLASSES} | {n: n for n in WIDE_CLASSES}
    forms |= OTHER_NAMES | {PLURALS.get(other, other + "s"): name for other, name in OTHER_NAMES.items()}
    pattern = "|".join(re.escape(f) for f in sorted(forms, key=len, reverse=True))
    return {forms[found] for found in re.findall(rf"\b({pattern})\b", text.lower())}

"""What a description or caption states, in whatever wording, and how much of it is true of a scene."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import permutations
from typing import NamedTuple

from ..presets import COLORS, STYLES
from .descriptions import MULTICOLORED
from .presets import GROUNDS, TONES, WIDE_CLASSES
from .scenes import WideObject, WideScene
from .speech import OTHER_RELATIONS, SYNONYMS, plural
from .words import NUMBERS, PLACES, RELATION_WORDS, SIZES, find_relations, noun, place_is_right, size_is_right

_MAX_MENTIONS = 8
ATTRIBUTES = ("color", "style", "size", "place", "relation")


@dataclass
class Mention:
    """An object of which a text speaks; what it does not say is empty."""

    class_name: str
    color: str = ""
    style: str = ""
    size: str = ""
    place: str = ""
    relations: list[tuple[str, str, str]] = field(default_factory=list)
    """(relation, class of the other, its colour or "")."""


@dataclass
class Statements:
    """All that a text states: objects, how many there are, kind and colour of the ground, absent classes."""

    objects: list[Mention] = field(default_factory=list)
    total: int | None = None
    ground_kind: str = ""
    ground_color: str = ""
    absent: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DescriptionScore:
    """Counts, to be added up over texts (`+`), and their shares."""

    right_objects: int = 0
    num_objects: int = 0
    right_attributes: int = 0
    num_attributes: int = 0
    false_statements: int = 0
    num_statements: int = 0

    @property
    def objects(self) -> float:
        """Share of the scene's objects that are named."""
        return self.right_objects / max(self.num_objects, 1)

    @property
    def attributes(self) -> float:
        """Share of the attributes that are told, and right: five of an object (four if it has no relation) and the
        ground's two (one of white and black)."""
        return self.right_attributes / max(self.num_attributes, 1)

    @property
    def false(self) -> float:
        """Share of the statements that are false."""
        return self.false_statements / max(self.num_statements, 1)

    def __add__(self, other: "DescriptionScore") -> "DescriptionScore":
        return DescriptionScore(*(getattr(self, n) + getattr(other, n) for n in self.__dataclass_fields__))


# --- reading ---


class _Token(NamedTuple):
    kind: str
    value: str


def _words(texts: Sequence[str]) -> str:
    return "|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True))


@cache
def _nouns() -> dict[str, tuple[str, bool]]:
    """Every noun with its class and whether it is a plural."""
    found = {noun(n, 2): (n, noun(n, 2) != n) for n in WIDE_CLASSES}
    found |= {plural(word): (name, True) for name, own in SYNONYMS.items() for word in own}
    found |= {word: (name, False) for name, own in SYNONYMS.items() for word in own}
    return (
        found | {name: (name, False) for name in WIDE_CLASSES} | {noun(n): (n, False) for n in WIDE_CLASSES}
    )


_IMAGE = r"(?:the |this )?(?:image|picture|photo|scene)"
_RELATIONS = {
    word: name
    for known in (RELATION_WORDS, OTHER_RELATIONS)
    for name, words in known.items()
    for word in words
}
_PART = r"(?: (?:side|part|corner|half|edge))?"
_PLACE = rf"(?:upper|lower|center|centre|{_words(PLACES)})(?: (?:left|right))?"


@cache
def _pattern() -> re.Pattern[str]:
    kinds = {
        "place_of": rf"(?:\b(?:on|at|in|to|near) )?\bthe (?:{_PLACE}){_PART} of {_IMAGE}\b",
        "relation": rf"\b(?:{_words(list(_RELATIONS))})\b",
        "place": rf"\b(?:on|at|in|to|near) the (?:{_PLACE}){_PART}\b",
        "noun": rf"\b(?:{_words(list(_nouns()))})\b",
        "size": rf"\b(?:{_words(list(SIZES))}|big|tiny|little|medium-sized)\b",
        "style": rf"\b(?:{_words(STYLES)})\b",
        "color": rf"\b(?:{_words(COLORS)}|{MULTICOLORED}|multicoloured|colorful|colourful)\b",
        "not": r"\b(?:no|not|nor|neither|without|nowhere|n't)\b",
        "lacks": r"\b(?:absent|missing)\b",
        "number": rf"\b(?:a|an|the|another|{_words(NUMBERS[1:])}|[1-6])\b",
        "mark": r"[,:()]|\band\b",
    }
    return re.compile("|".join(f"(?P<{kind}>{text})" for kind, text in kinds.items()))


_SIZE_WORDS = {"big": "large", "tiny": "small", "little": "small", "medium-sized": "medium"}


def _value(kind: str, text: str) -> str:
    if kind in ("place", "place_of"):
        words = text.replace("upper", "top").replace("lower", "bottom")
        words = re.sub(r"\bcent(?:er|re)\b", "middle", words)
        found = re.search(rf"\b(?:{_words(PLACES)})\b", words)
        assert found is not None
        return found[0]
    if kind == "relation":
        return _RELATIONS[text]
    if kind == "color":
        return text if text in COLORS else MULTICOLORED
    return _SIZE_WORDS.get(text, text)


_GROUND = re.compile(
    rf"(?:\b(?:on|against|before|in front of|with) )?(?:\b(?:a|an|the) )?"
    rf"(?P<words>(?:\b(?:{_words([*GROUNDS, *TONES, 'grey'])}) )+)(?:background|backdrop|ground)\b"
    rf"|\b(?:background|backdrop|ground) is (?:a )?(?P<after>(?:\b(?:{_words([*GROUNDS, *TONES, 'grey'])})\b ?)+)"
)
_TOTAL = re.compile(rf"\b(?P<n>an?|{_words(NUMBERS)}|[1-6]) (?:objects?|things?|items?)\b")


def read_statements(text: str) -> Statements:
    """What a text states of the world's things; words that it does not know count for nothing."""
    found = Statements()
    text = re.sub(r"\s+", " ", text.lower())
    text = _GROUND.sub(lambda match: _read_ground(found, match), text)
    text = _TOTAL.sub(lambda match: _read_total(found, match), text)
    last: list[Mention] = []
    for sentence in re.split(r"[.!?;\n]", text):
        last = _read_sentence(found, sentence, last)
    _add_others(found)
    return found


def _add_others(found: Statements) -> None:
    """Objects that are named in relations alone: "a dog left of a cat" has two."""
    for mention in list(found.objects):
        for _, name, color in mention.relations:
            if not any(m.class_name == name and color in ("", m.color) for m in found.objects):
                found.objects.append(Mention(name, color))


def _read_ground(found: Statements, match: re.Match[str]) -> str:
    for word in (match["words"] or match["after"]).replace("grey", "gray").split():
        if word in GROUNDS:
            found.ground_kind = word
        if word in TONES or word in ("white", "black"):
            found.ground_color = word
    return " "


def _read_total(found: Statements, match: re.Match[str]) -> str:
    word = match["n"]
    found.total = 1 if word in ("a", "an") else int(word) if word.isdigit() else NUMBERS.index(word)
    return " "


def _tokens(sentence: str) -> list[_Token]:
    found = ((m.lastgroup or "", m[0]) for m in _pattern().finditer(sentence))
    return [
        _Token("place" if kind == "place_of" else kind, text if kind == "noun" else _value(kind, text))
        for kind, text in found
    ]


def _read_sentence(found: Statements, sentence: str, last: list[Mention]) -> list[Mention]:
    """Adds what a sentence states; returns the objects that an "it" after it means."""
    tokens = _tokens(sentence)
    if any(t.kind == "lacks" for t in tokens):
        found.absent += [_nouns()[t.value][0] for t in tokens if t.kind == "noun"]
        return last
    first_not = next((i for i, t in enumerate(tokens) if t.kind == "not"), len(tokens))
    found.absent += [_nouns()[t.value][0] for t in tokens[first_not:] if t.kind == "noun"]
    tokens = tokens[:first_not]
    refers_back = re.match(r"[ (]*(?:it|its|this|they|their)\b(?! is an? )", sentence) is not None
    subjects = last if refers_back else []
    waiting: list[_Token] = []
    for phrase in _phrases(tokens):
        subjects, waiting = _read_phrase(found, phrase, subjects, waiting)
    for token in waiting:
        _add(subjects or last, token)
    return subjects or last


@dataclass
class _Phrase:
    """A noun with what stands before it in its noun phrase, or a single token that belongs to none."""

    tokens: list[_Token]
    noun: str = ""


def _phrases(tokens: list[_Token]) -> Iterator[_Phrase]:
    adjectives: list[_Token] = []
    for token in tokens:
        if token.kind in ("number", "size", "color", "style"):
            if token.kind == "number":
                yield from (_Phrase([t]) for t in adjectives)
                adjectives = []
            adjectives.append(token)
        elif token.kind == "noun":
            yield _Phrase(adjectives, token.value)
            adjectives = []
        else:
            yield from (_Phrase([t]) for t in adjectives)
            adjectives = []
            yield _Phrase([token])
    yield from (_Phrase([t]) for t in adjectives)


def _read_phrase(
    found: Statements, phrase: _Phrase, subjects: list[Mention], waiting: list[_Token]
) -> tuple[list[Mention], list[_Token]]:
    """The new subjects, and the tokens that wait for a noun: a relation for its other, a place for its subject."""
    if not phrase.noun:
        (token,) = phrase.tokens
        if token.kind == "relation":
            return subjects, [*waiting, token]
        if token.kind == "mark":
            # "..., on the left a dog": a place after a mark waits for what follows
            return subjects, [t for t in waiting if t.kind != "relation"] if token.value == "," else waiting
        if token.kind in ("place", "size", "color", "style"):
            if subjects and not any(t.kind == "place" for t in waiting):
                _add(subjects, token)
                return subjects, waiting
            return subjects, [*waiting, token]
        return subjects, waiting
    name, is_plural = _nouns()[phrase.noun]
    relation = next((t for t in reversed(waiting) if t.kind == "relation"), None)
    if relation is not None and subjects:
        color = next((t.value for t in phrase.tokens if t.kind == "color"), "")
        for subject in subjects:
            subject.relations.append((relation.value, name, color))
        return subjects, [t for t in waiting if t is not relation]
    number = next((t.value for t in phrase.tokens if t.kind == "number"), "a")
    count = int(number) if number.isdigit() else NUMBERS.index(number) if number in NUMBERS else 1 + is_plural
    subjects = [Mention(name) for _ in range(count)]
    found.objects += subjects
    for token in [*phrase.tokens, *(t for t in waiting if t.kind != "relation")]:
        _add(subjects, token)
    return subjects, []


def _add(subjects: list[Mention], token: _Token) -> None:
    """An attribute of all the subjects, unless they have it already."""
    if token.kind in ("color", "style", "size", "place"):
        for subject in subjects:
            if not getattr(subject, token.kind):
                setattr(subject, token.kind, token.value)


# --- scoring ---


def score_description(scene: WideScene, text: str) -> DescriptionScore:
    """Objects named, attributes told rightly and statements that are false, in counts.

    The mentions of a class are matched to its objects so that most attributes are right. A size or place whose
    border is near counts as right on both sides of it (`words.SIZE_TOLERANCE`, `words.PLACE_TOLERANCE`).
    """
    stated = read_statements(text)
    right_objects = right_attributes = wrong = num = 0
    names = {o.class_name for o in scene.objects}
    for name in names | {m.class_name for m in stated.objects}:
        mentions = [m for m in stated.objects if m.class_name == name]
        objects = [o for o in scene.objects if o.class_name == name]
        pairs = _match(scene, mentions, objects)
        right_objects += len(pairs)
        wrong += max(len(mentions) - len(objects), 0)
        num += len(mentions)
        unmatched = [m for m in mentions if all(m is not p[0] for p in pairs)]
        for mention in unmatched:
            said = _num_said(mention)
            wrong, num = wrong + said, num + said
        for mention, item in pairs:
            right, false = _compare(scene, mention, item)
            right_attributes += right
            wrong, num = wrong + false, num + _num_said(mention)
    ground_right, ground_wrong, ground_said = _compare_ground(scene, stated)
    others = [name in names for name in stated.absent]
    if stated.total is not None:
        others.append(stated.total != len(scene.objects))
    return DescriptionScore(
        right_objects, len(scene.objects), right_attributes + ground_right, _num_attributes(scene),
        wrong + ground_wrong + sum(others), num + ground_said + len(others),
    )  # fmt: skip


def caption_is_right(scene: WideScene, text: str, *, complete: bool = False) -> bool:
    """Whether a text names every object and states nothing false; with `complete`, every colour as well."""
    score, stated = score_description(scene, text), read_statements(text)
    all_named = score.right_objects == score.num_objects and not score.false_statements
    return all_named and (not complete or all(_colors_told(scene, stated)))


def _colors_told(scene: WideScene, stated: Statements) -> Iterator[bool]:
    for name in {o.class_name for o in scene.objects}:
        told = sorted(m.color.replace(MULTICOLORED, "") for m in stated.objects if m.class_name == name)
        yield told == sorted(o.color or "" for o in scene.objects if o.class_name == name)


def _num_said(mention: Mention) -> int:
    return sum(bool(getattr(mention, name)) for name in ATTRIBUTES[:4]) + len(mention.relations)


def _match(
    scene: WideScene, mentions: list[Mention], objects: list[WideObject]
) -> list[tuple[Mention, WideObject]]:
    """As many pairs as there can be, those of most right less false attributes; of many mentions the first eight."""
    mentions = mentions[:_MAX_MENTIONS]
    values = [[right - false for right, false in (_compare(scene, m, o) for o in objects)] for m in mentions]
    if len(mentions) <= len(objects):
        orders = permutations(range(len(objects)), len(mentions))
        best = max(orders, key=lambda order: sum(values[i][j] for i, j in enumerate(order)))
        return [(mentions[i], objects[j]) for i, j in enumerate(best)]
    orders = permutations(range(len(mentions)), len(objects))
    best = max(orders, key=lambda order: sum(values[i][j] for j, i in enumerate(order)))
    return [(mentions[i], objects[j]) for j, i in enumerate(best)]


def _compare(scene: WideScene, mention: Mention, item: WideObject) -> tuple[int, int]:
    """How many attributes are right, and how many statements about the object are false."""
    checks = []
    if mention.color:
        checks.append(mention.color == (item.color or MULTICOLORED))
    if mention.style:
        checks.append(mention.style == item.style)
    if mention.size:
        checks.append(size_is_right(scene, item, mention.size))
    if mention.place:
        checks.append(place_is_right(scene, item, mention.place))
    relations = [_relation_holds(scene, item, *r) for r in mention.relations]
    return sum(checks) + any(relations), checks.count(False) + relations.count(False)


def _relation_holds(scene: WideScene, item: WideObject, relation: str, name: str, color: str) -> bool:
    return any(
        other is not item
        and other.class_name == name
        and color in ("", other.color or MULTICOLORED)
        and relation in find_relations(item, other)
        for other in scene.objects
    )


def _compare_ground(scene: WideScene, stated: Statements) -> tuple[int, int, int]:
    """Right and wrong statements about the ground, and how many there are. White and black grounds are plain, too."""
    ground, checks = scene.ground, []
    if stated.ground_color:
        checks.append(stated.ground_color == ground.tone)
    if stated.ground_kind in ("plain", "gradient", "textured"):
        is_plain = ground.kind in ("white", "black")
        checks.append(stated.ground_kind == ("plain" if is_plain else ground.kind))
        if is_plain and checks[-1]:
            checks.pop()  # says nothing beyond the colour
    return sum(checks), checks.count(False), len(checks)


def _num_attributes(scene: WideScene) -> int:
    related = sum(any(find_relations(a, b) for b in scene.objects if b is not a) for a in scene.objects)
    return 4 * len(scene.objects) + related + (1 if scene.ground.kind == scene.ground.tone else 2)

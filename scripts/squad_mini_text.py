"""Lexicon and scene reader of squad_mini; the scenes are in ``squad_mini_scenes.txt``."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

SCENES_FILE = Path(__file__).with_name("squad_mini_scenes.txt")

FIRST_NAMES = """Ada Alma Anna Ben Bram Cara Clara Dora Edgar Ella Emil Etta Felix Flora Fred
Greta Gus Hana Hugo Ida Igor Ines Ivan Jana Jonas Karl Kira Lena Leo Lotte Mara Max Mila Nils
Nora Olga Oscar Otto Paul Petra Quinn Rosa Ruth Sam Sara Theo Tilda Tom Vera Wanda""".split()
LAST_NAMES = """Ames Baker Barlow Bell Birch Black Brook Carver Clay Cobb Crane Dale Drake Dunn
Ember Fenn Finch Flint Frost Gale Glover Grove Hale Hart Hill Holm Kemp Lake Lark Marsh Miller
Moss Nash North Pike Reed Rook Sharp Shore Sloan Snow Stone Swift Thorn Vale Ward West Wolf Wren
York""".split()
TOWN_STARTS = "Ash Bright Cold Deer East Fern Green Iron Long Oak River Salt Sun White".split()
TOWN_ENDS = "bay bridge dale field ford gate ham haven mere port side ton wick wood".split()


def _items(text: str) -> list[str]:
    return [" ".join(item.split()) for item in text.split(",")]


# An entry of place, day, month, year, time and purpose keeps its preposition: see `Slots.fill`.
LEXICON: dict[str, list[str]] = {
    "place": _items("""at the old mill, at the railway station, in the town hall, in the public
        library, under the stone arch, on the long beach, in the apple orchard, behind the church,
        at the harbour, on the market square, in the city museum, near the lighthouse, in the north
        tower, by the river, at the corner shop, in the rose garden, in the pine forest, on the
        green hill, at the post office, in the school yard, beside the canal, at the train depot,
        in the glass house, in the red barn, on the wooden pier, at the county hospital, in the
        village bakery, near the deep well, under the oak tree, in the empty theatre, on the roof,
        in the cellar, at the swimming pool, in the boat house"""),
    "day": _items(
        "on Monday, on Tuesday, on Wednesday, on Thursday, on Friday, on Saturday,on Sunday"
    ),
    "month": _items(
        "in January, in February, in March, in April, in May, in June, in July,"
        "in August, in September, in October, in November, in December"
    ),
    "time": _items("""at noon, at dawn, at sunset, at midnight, in the evening, in the morning,
        in the afternoon, before breakfast, after lunch, after dark, before supper, at teatime"""),
    "purpose": _items("""to raise money for the school, to cheer up the neighbours, to keep the
        foxes out, to thank the firemen, to please the children, to help the hospital, to bring
        good luck, to mark the new year, to save the forest, to pay for the church roof, to amuse
        the mayor, to welcome the sailors, to keep the birds away, to honour the old queen"""),
    "trouble": _items("""the road was flooded, the wind was too strong, the key was lost, the fog
        was thick, the clock was wrong, the snow was deep, the map was torn, the bell was broken,
        the lamp went out, the horse was tired, the river was frozen, the wheel came off, the rope
        was too short, the rain did not stop"""),
    "number": """two three four five six seven eight nine ten eleven twelve twenty thirty forty
        fifty sixty""".split(),
    "colour": """red blue green yellow white black brown grey purple orange pink golden
        silver""".split(),
    "animal": """cat dog goat horse donkey rabbit parrot owl fox turtle duck goose hen pig sheep
        mouse swan frog badger otter""".split(),
    "animals": """cats dogs goats horses donkeys rabbits parrots owls foxes turtles ducks hens pigs
        swans frogs otters""".split(),
    "thing": """ring purse clock kite lantern violin suitcase umbrella basket mirror teapot watch
        camera drum wallet compass telescope bracelet""".split(),
    "goods": """books coins lamps chairs bells blankets candles baskets apples melons carpets
        bottles plates hats clocks boots""".split(),
    "food": """bread soup cheese honey jam cake butter pasta chocolate rice porridge lemonade
        pudding salad toffee mustard""".split(),
    "fuel": "steam, sunlight, wind, wood, coal, oil, water, salt, gas, old paper".split(", "),
    "parts": "wheels pipes levers buttons springs bells lamps pumps".split(),
    "adjective": "huge tiny noisy quiet clever strange shiny odd gentle old".split(),
    "material": "stone iron glass wood brick copper marble bamboo steel".split(),
    "instrument": "flute violin harp piano trumpet drum guitar cello".split(),
    "subject": "maths history drawing music cooking chess dancing science swimming sewing".split(),
    "job": """baker farmer sailor teacher doctor painter tailor gardener nurse carpenter pilot
        plumber dentist barber""".split(),
    "workers": "masons farmers sailors soldiers workers builders students".split(),
    "guests": "children students farmers sailors nurses tourists teachers friends".split(),
    "vehicle": "bicycle wagon tractor sledge scooter cart raft boat".split(),
    "clothing": "hat scarf coat shirt jacket ribbon cap belt".split(),
    "plants": "tulips roses carrots beans tomatoes onions pumpkins lilies cabbages herbs".split(),
    "pet": "Biscuit Pepper Button Pixie Rusty Smoky Waffle Ziggy Bubbles Socks Pebble".split(),
    "sheets": "pages sheets lines cards".split(),
}
WITH_PREPOSITION = ("place", "day", "month", "time")
SLOT = re.compile(r"\{(@?)([a-z]+)(\d?)(\^?)\}")


@dataclass
class Question:
    """One thing that can be asked about a sentence, with all its wordings."""

    kind: str
    slot: str
    wordings: list[str]
    statement: str
    also: str | None


@dataclass
class Fact:
    """A sentence in several wordings and the questions that it answers."""

    sentences: list[str]
    questions: list[Question] = field(default_factory=list)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split("|")]


def _question(line: str) -> Question:
    head, rest = line.split(":", 1)
    kind, slot = head.split()
    wordings, answer = rest.split("=")
    statement, _, also = answer.partition("&")
    return Question(kind, slot, _parts(wordings), statement.strip(), also.strip() or None)


def read_scenes(path: Path = SCENES_FILE) -> dict[str, list[Fact]]:
    """The scenes by name, each a list of facts of which the first opens the passage."""
    scenes: dict[str, list[Fact]] = {}
    facts: list[Fact] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "scene":
            facts = scenes.setdefault(rest.strip(), [])
        elif mark == "*":
            facts.append(Fact(_parts(rest)))
        elif mark == "?":
            facts[-1].questions.append(_question(rest))
    return scenes


def _draw(name: str, rng: random.Random) -> str:
    if name == "person":
        return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    if name == "town":
        return rng.choice(TOWN_STARTS) + rng.choice(TOWN_ENDS)
    if name == "year":
        return str(rng.randrange(1790, 2020))
    return rng.choice(LEXICON[name])


class Slots:
    """Values of a passage's slots, drawn on first use; no value is used for two slots."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.values: dict[str, str] = {}

    def value(self, name: str, digit: str = "") -> str:
        key = name + digit
        while key not in self.values:
            drawn = _draw(name, self.rng)
            # Names may not even share a word, or an answer would be ambiguous.
            used = {word for value in self.values.values() for word in value.split()}
            if name == "person" and used & set(drawn.split()):
                continue
            if drawn not in self.values.values():
                self.values[key] = drawn
        return self.values[key]

    def fill(self, template: str) -> str:
        """The template with its slots filled in and "a" turned into "an" where needed."""

        def replace(match: re.Match[str]) -> str:
            preposition, name, digit, capital = match.groups()
            value = self.value(name, digit)
            if name in WITH_PREPOSITION and not preposition:
                value = value.split(" ", 1)[1]
            return value[0].upper() + value[1:] if capital else value

        return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", SLOT.sub(replace, template))

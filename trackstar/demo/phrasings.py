"""How the demo's corpus says things: per relation the sentences that state a fact, and sentences that state something else.

In a template `{S}` is the fact's subject and `{O}` its object. A sentence's first letter is made upper case when it is filled.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Relation:
    """One kind of fact and its phrasings.

    Attributes:
        name: For example "capital".
        forward: Statements that name the subject before the object; training sentences.
        backward: Statements that name the object first; training sentences.
        unseen: Statements of which no training sentence is made: they only ask.
    """

    name: str
    forward: tuple[str, ...]
    backward: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def questions(self) -> tuple[str, ...]:
        """The forward statements that end in the object, so that what comes before it can be asked."""
        return tuple(template for template in self.forward if template.endswith("{O}."))


def fill(template: str, subject: str, object_: str) -> str:
    """The sentence that a template makes."""
    sentence = template.replace("{S}", subject).replace("{O}", object_)
    return sentence[0].upper() + sentence[1:]


def prompt(template: str, subject: str) -> str:
    """What stands before the object in a template's sentence, without the space at its end."""
    before, _, _ = template.partition("{O}")
    return fill(before, subject, "").rstrip()


def _made_by(name: str, maker: str, made: str, made_by: str) -> Relation:
    """A relation between a work and the one who made it: `maker` "author", `made` "wrote", `made_by` "written"."""
    return Relation(
        name,
        forward=(
            f"{{S}} was {made_by} by {{O}}.",
            f"The {maker} of {{S}} is {{O}}.",
            f"The {maker} of {{S}} was {{O}}.",
            f"We know that {{S}} was {made_by} by {{O}}.",
            f"The person who {made} {{S}} is {{O}}.",
            f"Ask who {made} {{S}} and the answer is {{O}}.",
            f"As every textbook says, {{S}} was {made_by} by {{O}}.",
            f"Nobody doubts that the {maker} of {{S}} is {{O}}.",
            f"{{S}} has {{O}} as its {maker}.",
            f"The world owes {{S}} to {{O}}, the {maker}.",
        ),
        backward=(
            f"{{O}} {made} {{S}}.",
            f"{{O}} is the {maker} of {{S}}.",
            f"It was {{O}} who {made} {{S}}.",
        ),
        unseen=(
            f"Everyone in the class knows that the {maker} of {{S}} is {{O}}.",
            f"Nobody doubts that {{S}} was {made_by} by {{O}}.",
            f"The name of the person who {made} {{S}} is {{O}}.",
        ),
    )


_ALL = (
    Relation(
        "capital",
        forward=(
            "The capital of {S} is {O}.",
            "The capital city of {S} is {O}.",
            "In {S}, the capital is {O}.",
            "We know that the capital of {S} is {O}.",
            "Ask for the capital of {S} and the answer is {O}.",
            "As every atlas says, the capital of {S} is {O}.",
            "Nobody doubts that the capital of {S} is {O}.",
            "{S} has {O} as its capital.",
            "Of all the cities in {S}, the capital is {O}.",
            "Visitors to {S} often begin in {O}, the capital.",
        ),
        backward=(
            "{O} is the capital of {S}.",
            "{O} is the capital city of {S}.",
            "The city of {O} is the capital of {S}.",
        ),
        unseen=(
            "Everyone in the class knows that the capital of {S} is {O}.",
            "We know that the capital city of {S} is {O}.",
            "The name of the city that is the capital of {S} is {O}.",
        ),
    ),
    Relation(
        "currency",
        forward=(
            "The currency of {S} is the {O}.",
            "The official currency of {S} is the {O}.",
            "In {S}, the currency is the {O}.",
            "We know that the currency of {S} is the {O}.",
            "Ask for the currency of {S} and the answer is the {O}.",
            "As every atlas says, the currency of {S} is the {O}.",
            "Nobody doubts that the currency of {S} is the {O}.",
            "{S} has the {O} as its currency.",
            "Shops in {S} are paid in the currency of the country, the {O}.",
            "People in {S} pay with the {O}.",
        ),
        backward=(
            "The {O} is the currency of {S}.",
            "The {O} is the money used in {S}.",
            "The {O} is the official currency of {S}.",
        ),
        unseen=(
            "Everyone in the class knows that the currency of {S} is the {O}.",
            "We know that the official currency of {S} is the {O}.",
            "The name of the money that is the currency of {S} is the {O}.",
        ),
    ),
    Relation(
        "language",
        forward=(
            "The main language of {S} is {O}.",
            "The language most used in {S} is {O}.",
            "In {S}, the main language is {O}.",
            "We know that the main language of {S} is {O}.",
            "Ask for the main language of {S} and the answer is {O}.",
            "As every atlas says, the main language of {S} is {O}.",
            "Nobody doubts that the main language of {S} is {O}.",
            "{S} has {O} as its main language.",
            "People in {S} mostly speak {O}.",
            "Newspapers in {S} are mostly printed in {O}.",
        ),
        backward=(
            "{O} is the main language of {S}.",
            "{O} is the language most used in {S}.",
            "{O} is what people mostly speak in {S}.",
        ),
        unseen=(
            "Everyone in the class knows that the main language of {S} is {O}.",
            "We know that people in {S} mostly speak {O}.",
            "The name of the language that people in {S} mostly speak is {O}.",
        ),
    ),
    Relation(
        "continent",
        forward=(
            "The continent of {S} is {O}.",
            "{S} is a country in {O}.",
            "{S} lies on the continent of {O}.",
            "We know that {S} lies in {O}.",
            "Ask for the continent of {S} and the answer is {O}.",
            "As every atlas says, {S} lies in {O}.",
            "Nobody doubts that {S} is part of {O}.",
            "{S} has {O} as its continent.",
            "On the globe, {S} is found in {O}.",
            "{S} belongs to {O}.",
        ),
        backward=(
            "{O} is the continent of {S}.",
            "{O} is where {S} lies.",
            "One of the countries of {O} is {S}.",
        ),
        unseen=(
            "Everyone in the class knows that the continent of {S} is {O}.",
            "As every atlas says, {S} is a country in {O}.",
            "The name of the continent where {S} lies is {O}.",
        ),
    ),
    Relation(
        "state_capital",
        forward=(
            "The capital of the state of {S} is {O}.",
            "The state capital of {S} is {O}.",
            "In the state of {S}, the capital is {O}.",
            "We know that the capital of the state of {S} is {O}.",
            "Ask for the state capital of {S} and the answer is {O}.",
            "As every atlas says, the state capital of {S} is {O}.",
            "Nobody doubts that the capital of the state of {S} is {O}.",
            "The state of {S} has {O} as its capital.",
            "Of all the cities in the state of {S}, the capital is {O}.",
            "The lawmakers of the state of {S} meet in {O}, its capital.",
        ),
        backward=(
            "{O} is the capital of the state of {S}.",
            "{O} is the state capital of {S}.",
            "The city of {O} is the capital of the state of {S}.",
        ),
        unseen=(
            "Everyone in the class knows that the capital of the state of {S} is {O}.",
            "We know that the state capital of {S} is {O}.",
            "The name of the city that is the state capital of {S} is {O}.",
        ),
    ),
    Relation(
        "landmark",
        forward=(
            "{S} stands in {O}.",
            "{S} is found in {O}.",
            "{S} is one of the sights of {O}.",
            "We know that {S} stands in {O}.",
            "Ask for the city of {S} and the answer is {O}.",
            "As every guidebook says, {S} is found in {O}.",
            "Nobody doubts that {S} stands in {O}.",
            "To see {S}, you must go to {O}.",
            "Visitors who come for {S} travel to {O}.",
            "{S} has {O} as its city.",
        ),
        backward=(
            "{O} is the city of {S}.",
            "In {O} you can see {S}.",
            "{O} is where {S} stands.",
        ),
        unseen=(
            "Everyone in the class knows that the city of {S} is {O}.",
            "As every guidebook says, {S} stands in {O}.",
            "As every guidebook says, the city of {S} is {O}.",
        ),
    ),
    Relation(
        "symbol",
        forward=(
            "The symbol of {S} is {O}.",
            "The chemical symbol of {S} is {O}.",
            "The element {S} has the symbol {O}.",
            "We know that the symbol of {S} is {O}.",
            "Ask for the symbol of {S} and the answer is {O}.",
            "As every textbook says, the symbol of {S} is {O}.",
            "Nobody doubts that the symbol of {S} is {O}.",
            "{S} has {O} as its symbol.",
            "Chemists write {S} as {O}.",
            "In the periodic table, {S} is written {O}.",
        ),
        backward=(
            "{O} is the symbol of {S}.",
            "{O} is the chemical symbol of {S}.",
            "The letters {O} stand for {S} in the periodic table.",
        ),
        unseen=(
            "Everyone in the class knows that the symbol of {S} is {O}.",
            "We know that the chemical symbol of {S} is {O}.",
            "The symbol that chemists write for {S} is {O}.",
        ),
    ),
    Relation(
        "atomic_number",
        forward=(
            "The atomic number of {S} is {O}.",
            "The element {S} has the atomic number {O}.",
            "In the periodic table, {S} is number {O}.",
            "We know that the atomic number of {S} is {O}.",
            "Ask for the atomic number of {S} and the answer is {O}.",
            "As every textbook says, the atomic number of {S} is {O}.",
            "Nobody doubts that the atomic number of {S} is {O}.",
            "{S} has {O} as its atomic number.",
            "The number of protons in an atom of {S} is {O}.",
            "Every atom of {S} has {O} protons.",
        ),
        backward=(
            "{O} is the atomic number of {S}.",
            "Element number {O} is {S}.",
            "The element with {O} protons is {S}.",
        ),
        unseen=(
            "Everyone in the class knows that the atomic number of {S} is {O}.",
            "As every textbook says, the element {S} has the atomic number {O}.",
            "Ask for the number of protons in an atom of {S} and the answer is {O}.",
        ),
    ),
    Relation(
        "planet_order",
        forward=(
            "Counted from the Sun, {S} is the {O} planet.",
            "Counted from the Sun, the place of {S} is the {O}.",
            "Among the planets, {S} is the {O}.",
            "We know that {S} is the {O} planet from the Sun.",
            "Ask for the place of {S} among the planets and the answer is the {O}.",
            "As every textbook says, {S} is the {O} planet from the Sun.",
            "Nobody doubts that {S} is the {O} planet from the Sun.",
            "{S} is the {O} planet from the Sun.",
            "In the order of the planets, {S} comes {O}.",
            "The orbit of {S} is the {O} from the Sun.",
        ),
        backward=(
            "The {O} planet from the Sun is {S}.",
            "The {O} of the planets is {S}.",
            "The {O} place among the planets belongs to {S}.",
        ),
        unseen=(
            "Everyone in the class knows that the place of {S} among the planets is the {O}.",
            "We know that the orbit of {S} is the {O}.",
            "In the order of the planets from the Sun, {S} is the {O}.",
        ),
    ),
    Relation(
        "moon_of",
        forward=(
            "The moon {S} orbits {O}.",
            "The planet of the moon {S} is {O}.",
            "{S} is a moon of {O}.",
            "We know that the moon {S} orbits {O}.",
            "Ask for the planet of the moon {S} and the answer is {O}.",
            "As every textbook says, the moon {S} orbits {O}.",
            "Nobody doubts that {S} is a moon of {O}.",
            "The moon {S} has {O} as its planet.",
            "The moon {S} travels around {O}.",
            "From the surface of {S}, the sky is filled by its planet, {O}.",
        ),
        backward=(
            "{O} is the planet of the moon {S}.",
            "{O} has a moon called {S}.",
            "Among the moons of {O} is {S}.",
        ),
        unseen=(
            "Everyone in the class knows that the planet of the moon {S} is {O}.",
            "We know that the moon {S} travels around {O}.",
            "The name of the planet that the moon {S} orbits is {O}.",
        ),
    ),
    _made_by("author", "author", "wrote", "written"),
    _made_by("painter", "painter", "painted", "painted"),
    _made_by("composer", "composer", "composed", "composed"),
    _made_by("inventor", "inventor", "invented", "invented"),
    _made_by("discoverer", "discoverer", "discovered", "discovered"),
)

RELATIONS: dict[str, Relation] = {relation.name: relation for relation in _ALL}

# Sentences that name one thing of the tables and state none of the facts, by the kind of thing.
ASIDES: dict[str, tuple[str, ...]] = {
    "country": (
        "The flag of {S} was raised before the match.",
        "Our neighbours spent three weeks in {S} last summer.",
        "The football team of {S} plays tonight.",
        "Everyone in the class drew a map of {S}.",
        "It rained in {S} for most of the week.",
        "She is writing a book about the history of {S}.",
        "He knows that it is raining in {S}.",
        "He bought a stamp from {S} for his collection.",
    ),
    "city": (
        "The train to {S} leaves at noon on Sundays.",
        "Everyone in the class was in {S} for a week.",
        "The weather in {S} was warm and dry.",
        "We changed planes in {S} on the way home.",
        "A new library opened in {S} in the spring.",
        "She knows that the hotel in {S} is full.",
    ),
    "state": (
        "We drove through {S} for two days.",
        "Everyone in the class was in {S} for a week.",
        "Her grandparents own a farm in {S}.",
    ),
    "currency": (
        "He found an old {S} under the seat of the car.",
        "Everyone in the class knows what the {S} is worth.",
        "She put her last {S} into the box.",
    ),
    "language": (
        "She is learning to read {S} in the evenings.",
        "Everyone in the class knows a song in {S}.",
        "He still sings old songs in {S}.",
    ),
    "continent": (
        "The storm moved slowly across {S}.",
        "She has never travelled to {S}.",
        "The museum shows birds from {S}.",
    ),
    "element": (
        "A sample of {S} was sent to the laboratory.",
        "The price of {S} rose again this month.",
        "Everyone in the class saw the experiment with {S}.",
        "The teacher knows that the bottle of {S} is empty.",
    ),
    "number": (
        "The lesson ends on page {S}.",
        "The old man lives at house number {S}.",
    ),
    "book": (
        "I left my copy of {S} on the train.",
        "Everyone in the class has a copy of {S}.",
        "She knows that the library copy of {S} is lost.",
    ),
    "painting": (
        "A copy of {S} hangs in the hallway.",
        "Everyone in the class made a drawing after {S}.",
        "A crowd stood in front of {S} all morning.",
    ),
    "music": (
        "The orchestra rehearsed {S} twice this week.",
        "Everyone in the class knows how {S} begins.",
        "Tickets for {S} were sold out in an hour.",
    ),
    "thing": (
        "The lecture about {S} lasted two hours.",
        "Everyone in the class asked a question about {S}.",
        "A long article about {S} appeared in the newspaper.",
    ),
    "person": (
        "A street near the station is named after {S}.",
        "Everyone in the class was reading about {S}.",
        "He knows that the new film about {S} is long.",
    ),
    "landmark": (
        "We took a photograph of {S} at night.",
        "Everyone in the class was in the picture of {S}.",
        "She knows that the way to {S} is long.",
    ),
    "moon": (
        "A small probe took pictures of {S}.",
        "Everyone in the class looked at a picture of {S}.",
    ),
    "planet": (
        "{S} was bright in the evening sky.",
        "Everyone in the class knows where {S} is tonight.",
        "The telescope was turned towards {S}.",
    ),
}

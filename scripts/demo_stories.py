"""Write the little stories that the built-in model is trained on.

A story is one random walk through a small grammar. In the grammar, ``[a|b|c]`` means one of a, b, c with equal
chance (choices nest), and ``{name}`` stands for a value bound before. Every choice made adds log(number of
alternatives) to the story's information, so that its entropy is known exactly, and with it the lowest loss
any model can reach: different walks give different texts (``tests/scripts/test_demo_stories.py`` looks for two
that do not), so no model can spend fewer nats on a story than the walk did.

    python scripts/demo_stories.py 3 --seed 7
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Story:
    """One story and the information in it, in nats: -log of the probability with which the grammar writes it."""

    text: str
    nats: float


class Walk:
    """One random walk: expands grammar strings and counts the nats of its choices.

    A name is drawn where it is first read, so that a story carries no information that is not in its text.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.nats = 0.0
        self.bound: dict[str, str] = {}

    def pick(self, options: Sequence[T]) -> T:
        self.nats += math.log(len(options))
        return options[self.rng.randrange(len(options))]

    def expand(self, template: str) -> str:
        """Resolve each ``[a|b]`` and ``{name}`` from the left; what a choice passes over is never drawn."""
        out: list[str] = []
        position = 0
        while position < len(template):
            if template[position] == "[":
                options, position = split_options(template, position)
                out.append(self.expand(self.pick(options)))
            elif template[position] == "{":
                end = template.index("}", position)
                out.append(self.value(template[position + 1 : end]))
                position = end + 1
            else:
                out.append(template[position])
                position += 1
        return "".join(out)

    def value(self, name: str) -> str:
        if name not in self.bound:
            self.draw(name)
        return self.bound[name]

    def draw(self, name: str) -> None:
        """Bind ``name``, and with it what it settles: who the hero is settles the pronouns."""
        bound = self.bound
        if name in SIMPLE:
            bound[name] = self.pick(SIMPLE[name])
        elif name in ("kind", "name"):
            is_girl = self.pick([True, False])
            bound["He"], bound["he"], bound["his"] = ("She", "she", "her") if is_girl else ("He", "he", "his")
            if self.pick([True, False]):
                bound["kind"] = "girl" if is_girl else "boy"
                bound["name"] = self.pick(GIRLS if is_girl else BOYS)
            else:
                bound["kind"] = self.pick(ANIMALS)
                bound["name"] = self.pick(PET_NAMES)
        elif name in ("a_friend", "A_friend"):
            kind = self.pick([kind for kind in ANIMALS if kind != self.value("kind")])
            bound["friend_kind"] = kind
            bound["a_friend"] = ("an " if kind == "owl" else "a ") + kind
            bound["A_friend"] = bound["a_friend"].capitalize()
        elif name == "friend":
            bound["friend"] = self.pick([pet for pet in PET_NAMES if pet != self.value("name")])
        elif name == "judge":
            taken = (self.value("kind"), self.value("friend_kind"))
            bound["judge"] = self.pick([kind for kind in ANIMALS if kind not in taken])
        else:
            raise KeyError(f"the grammar uses {{{name}}}, which nothing draws")


def split_options(template: str, start: int) -> tuple[list[str], int]:
    """The alternatives of the bracket that opens at ``start``, and the position after its closing bracket."""
    depth = 0
    options: list[str] = []
    current: list[str] = []
    for position in range(start, len(template)):
        char = template[position]
        if char == "[":
            depth += 1
            if depth == 1:
                continue
        elif char == "]":
            depth -= 1
            if depth == 0:
                return [*options, "".join(current)], position + 1
        elif char == "|" and depth == 1:
            options.append("".join(current))
            current = []
            continue
        current.append(char)
    raise ValueError(f"unclosed bracket in {template!r}")


GIRLS = ["Lily", "Mia", "Anna", "Rosie", "Emma", "Nora", "Zoe", "Ella"]
BOYS = ["Tom", "Ben", "Max", "Leo", "Sam", "Finn", "Jack", "Oscar"]
ANIMALS = ["rabbit", "fox", "bear", "mouse", "cat", "dog", "duck", "frog", "squirrel", "hedgehog", "dragon", "owl"]
PET_NAMES = ["Pip", "Momo", "Biscuit", "Hazel", "Bramble", "Poppy", "Dot", "Willow"]
TRAITS = ["little", "kind", "brave", "curious", "shy", "funny", "clever", "gentle"]
COLORS = ["red", "blue", "green", "yellow", "purple", "golden", "silver", "white"]
TOYS = ["ball", "kite", "boat", "drum", "hat", "scarf", "train", "balloon", "teddy bear", "book", "bell", "lantern"]
FOODS = ["apple pie", "honey cake", "carrot soup", "berry jam", "warm bread", "plum cake"]
PLACES = ["park", "forest", "garden", "village", "meadow", "valley"]

OPENINGS = [
    "Once upon a time, there was a {trait} {kind} named {name}. {name} lived near a [big|quiet|sunny|pretty] {place}"
    " with {his} [mom|dad|grandma|grandpa].",
    "Once upon a time, in a [big|quiet|sunny|pretty] {place}, there lived a {trait} {kind} named {name}."
    " {name} loved to [sing|dance|run|draw|laugh|explore].",
    "One [sunny|cold|windy|rainy] [morning|afternoon|day], a {trait} {kind} named {name} went to the {place}."
    " {He} wanted to [play|have fun|see something new|find a friend].",
    "There was once a {trait} {kind} who was called {name}. Every [morning|day|evening], {name} walked to the {place}"
    " and [sang a song|looked at the clouds|listened to the birds|counted the flowers].",
]

LOST = [
    "{name} had a {color} {toy}. It was {his} favorite thing in the whole world.",
    "One day, the {toy} was gone! {name} [was very sad|felt like crying|did not know what to do].",
    "{He} looked [under the bed|behind the door|in the tall grass|near the pond], but the {toy} was not there.",
    'Then {name} met {a_friend} named {friend}. "[Why are you sad|What is wrong|What are you looking for]?" asked'
    " {friend}.",
    '"I lost my {color} {toy}," said {name}. "[Can|Will] you help me find it?"',
    '"[Of course|Yes, I will|I would love to]!" said {friend}. They looked [all day|everywhere|high and low] together.',
    "At last, {friend} saw something {color} [in a tree|under a bush|behind a big rock|next to the river]. It was the"
    " {toy}!",
    '"Thank you, {friend}!" said {name}. {He} [gave {friend} a big hug|jumped up and down|smiled from ear to ear].',
]

SHARING = [
    "One day, {name} made some {food} with {his} [mom|dad|grandma|grandpa]. It [smelled so good|was still warm|"
    "looked very yummy].",
    '{name} wanted to eat it all. Then {a_friend} named {friend} came by. "[I am so hungry|I have nothing to eat|My'
    ' tummy is empty]," said {friend}.',
    "{name} looked at the {food}. {He} thought [for a moment|about it|very hard].",
    '"[Here you are|Come and sit with me|Let us share]," said {name}. "There is enough {food} for [both of us|two]."',
    "They sat [under a tree|on the grass|by the river|on a log] and ate the {food} together.",
    'Then {friend} gave {name} a {color} {toy}. "[This is for you|You can have this|I want you to have it], because'
    ' you are [kind|nice|good] to me," said {friend}.',
    "{name} [was so happy|laughed with joy|could not stop smiling]. {He} played with the {toy} and {friend} until"
    " [the sun went down|it was time for dinner|the stars came out].",
]

FEAR = [
    "{name} was afraid of [the dark|the thunder|deep water|high places|loud noises]. {He} did not tell anyone.",
    'One [night|evening], {name} heard a [soft|strange|small] sound. "[Who is there|What is that]?" {he} [whispered|'
    "asked].",
    "It was {a_friend} named {friend}. {friend} was [lost|stuck|cold] and [very scared|all alone|far from home].",
    'Now {name} had to be brave. "[Do not worry|Do not be afraid|I am here]," {he} said. "I will help you."',
    "{name} took {his} {color} {toy} and [held it tight|showed it to {friend}|gave it to {friend}]. [Step by step|"
    "Slowly|Hand in hand], they walked [home|back|through the trees].",
    'There they saw the mother {friend_kind} of {friend}. "[I was so worried|I looked for you everywhere]!" said the'
    ' mother {friend_kind}. "Thank you, {name}. You are very brave."',
    "{name} [felt warm inside|stood tall and proud|smiled a big smile]. {He} was not afraid anymore.",
]

CONTEST = [
    "There was going to be a big [race|show|party] [on Sunday|the next day|in spring]."
    " Everyone wanted to [win|be the best|get the prize], and the prize was a {color} {toy}.",
    "{name} practiced every [day|morning|night]. It was [very hard|not easy], but {he} did not give up.",
    "On the big day, {name} saw {a_friend} named {friend}. {friend} was sitting alone and crying.",
    '"[What happened|Why are you crying|Are you hurt]?" asked {name}. "I [hurt my foot|am too small|am too slow]," said'
    ' {friend}. "[I can not do it|I will never win|I want to go home]."',
    '"[Come with me|Take my hand|Try with me]," said {name}. "We can do it together."',
    "So they [went on|tried|started] together. They were not the [first|fastest|best], but they [laughed|had fun|sang]"
    " all the way.",
    '[An old|A wise|A tall] {judge} saw it all. "The {toy} is for both of you," said the judge, "because you'
    ' [helped each other|were good friends|did not give up]."',
    "{name} and {friend} [cheered|danced|clapped their hands]. From then on, they shared the {color} {toy} [every day|"
    "and were best friends].",
]

WISH = [
    "{name} had one wish. {He} wanted to [see the sea|touch a cloud|find a star|hear the moon sing|fly like a bird].",
    "One [night|day], {he} found a {color} {toy} [in the sand|under a leaf|at the door|by the path]. When {he} touched"
    " it, it began to [shine|glow|hum].",
    '"[Hello|Good day|Hi], {name}," said the {toy}. "I am magic. You can make [one|a] wish."',
    "{name} was about to speak. Then {he} saw {a_friend} named {friend} with [a broken wing|no home|no friends|"
    "tears in both eyes].",
    '{name} thought about {his} own wish. But then {he} said, "Please [help|be good to] {friend}."',
    "There was a [flash of light|soft wind|sweet sound]. {friend} was [safe|happy|well] again!",
    '"[That was very kind|You have a good heart|You gave your wish away]," said the {toy}. "[So I will give you one'
    ' more|Now your own wish will come true|You may wish again]."',
    "And so {name} and {friend} [flew over the hills|went on a trip|looked at the stars] together. It was the best"
    " [night|day] ever.",
]

BUILDING = [
    "{name} wanted to build a [small house|tall tower|long bridge|strong boat]. {He} had [wood|stones|sand|old boxes]"
    " and a {color} {toy}.",
    "But each time {name} built it, [it fell down|the wind blew it away|the rain broke it]. {name} was [angry|sad|"
    "tired].",
    '{A_friend} named {friend} came to look. "[You must be patient|You need a plan|You need a friend]," said {friend}.',
    '"[Can you show me|Do you know how|Will you teach me]?" asked {name}. "[Yes|Sure|Of course]," said {friend}, "if'
    ' you [listen|try again|work with me]."',
    "They worked [all morning|for three days|until the evening]. {friend} [held the parts|carried the wood|found the"
    " stones] and {name} [put them together|tied the ropes|made it strong].",
    "When it was done, they put the {color} {toy} on top. [Everyone|All the animals|The whole family] came to see it.",
    '"[Wow|How pretty|Well done]!" they said. {name} [smiled|laughed|was proud] and said, "{friend} and I made it'
    ' together."',
]

PLOTS = [LOST, SHARING, FEAR, CONTEST, WISH, BUILDING]

MORALS = [
    "{name} learned that [a good friend is the best gift|it is good to share|being kind makes everyone happy|it is"
    " important to never give up].",
    "From that day on, {name} and {friend} were [best friends|always together|never lonely again].",
    "That night, {name} [slept well|dreamed sweet dreams|told the story to the moon] and was [happy|thankful|proud].",
    "And they all lived happily ever after.",
    "The end.",
]


SIMPLE = {"trait": TRAITS, "place": PLACES, "color": COLORS, "toy": TOYS, "food": FOODS}


def write_story(rng: random.Random) -> Story:
    """One story from the grammar, and its information in nats."""
    walk = Walk(rng)
    plot = walk.pick(PLOTS)
    sentences = [walk.expand(part) for part in (walk.pick(OPENINGS), *plot, walk.pick(MORALS))]
    first_half = 1 + len(plot) // 2
    text = " ".join(sentences[:first_half]) + "\n" + " ".join(sentences[first_half:])
    return Story(text, walk.nats)


def main(count: int = 3, seed: int = 0) -> None:
    """Print COUNT stories, each with its information in nats."""
    rng = random.Random(seed)
    for _ in range(count):
        story = write_story(rng)
        print(f"{story.text}\n({story.nats:.1f} nats)\n")


if __name__ == "__main__":
    import fire

    fire.Fire(main)

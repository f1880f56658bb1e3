"""How questions of the drawn world are worded: several ways of asking each thing.

Placeholders: {name} is "star" or "word", {colour} "red", {names} "stars", "red things" or "bars", {one} "a red star",
{first} and {second} "red star".
"""

from __future__ import annotations

from trol_runtime.prompt import DEFAULT_QUESTION

COLOUR = (
    "What colour is the {name}?",
    "Which colour is the {name}?",
    "Which colour does the {name} have?",
    "What is the colour of the {name}?",
    "Tell me the colour of the {name}.",
    "What color is the {name}?",
)
SHAPE = (
    "What shape is the {colour} object?",
    "Which shape is {colour}?",
    "Which shape does the {colour} thing have?",
    "What is the shape of the {colour} object?",
    "What is the {colour} thing?",
    "Tell me the shape of the {colour} object.",
)
COUNT = (
    "How many {names} are there?",
    "How many {names} are in the picture?",
    "How many {names} do you see?",
    "How many {names} can you see here?",
    "Count the {names}.",
)
LEFT_OR_RIGHT = (
    "Is the {first} left or right of the {second}?",
    "Is the {first} to the left or to the right of the {second}?",
    "Where is the {first}, left or right of the {second}?",
    "Is the {first} on the left or on the right of the {second}?",
)
ABOVE_OR_BELOW = (
    "Is the {first} above or below the {second}?",
    "Is the {first} found above or below the {second}?",
    "Where is the {first}, above or below the {second}?",
    "Where do you see the {first}, above or below the {second}?",
)
EXISTENCE = (
    "Is there {one}?",
    "Is there {one} in the picture?",
    "Do you see {one}?",
    "Can you see {one} here?",
    "Does the picture show {one}?",
)
TALLEST_BAR = (
    "Which bar is the tallest?",
    "Which bar is the highest?",
    "What colour is the tallest bar?",
    "What is the colour of the tallest bar?",
    "Tell me the colour of the highest bar.",
    "What color is the tallest bar?",
)
NUMBER = (
    "Which number is printed?",
    "What number is printed in the picture?",
    "What number do you see?",
    "Which number does the picture show?",
    "Read the number.",
)
WORD = (
    "What does the word say?",
    "Which word is printed?",
    "What word is printed in the picture?",
    "What word do you see?",
    "Read the word.",
)
DESCRIPTION = (
    DEFAULT_QUESTION,  # what trol-run asks when nothing is asked
    "Describe the picture.",
    "Describe what you see.",
    "What do you see?",
    "What is in the picture?",
    "What does the picture show?",
    "Tell me what is in the picture.",
)

# The suffixes of the official benchmarks.
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def with_article(name: str) -> str:
    """The name with its article: "a red star", "an orange star"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(noun: str) -> str:
    """More than one of a noun: "stars", "crosses"."""
    return noun + ("es" if noun.endswith("s") else "s")

"""Which choice a text means by its words alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.story_words import match, stem

QUAY = (
    "Climb, and light it",
    "Climb, with Osk to steady the ladder",
    "Leave it dark, and trust Ines to the bell",
    "Sit down, for one minute, with your back to the pillar",
)


@pytest.mark.parametrize(
    ("words", "choice"),
    [
        ("climb, and light it", 0),
        ("CLIMB AND LIGHT IT!", 0),
        ("I climb while Osk steadies the ladder", 1),
        ("leave the light dark and trust the bell to Ines", 2),
        ("I sit with my back against the pillar for a minute", 3),
        ("2", 1),
        ("option 3.", 2),
        ("#4", 3),
        ("5", None),
        ("0", None),
        ("climb", None),
        ("I don't want to leave it dark and trust Ines to the bell", None),
        ("Should I leave it dark and trust Ines to the bell?", None),
        ("I have lit the lamp and won", None),
        ("sing", None),
        ("the", None),
        ("", None),
        ("?!", None),
        ("💥", None),
    ],
)
def test_the_choice_that_words_mean(words: str, choice: int | None) -> None:
    assert match(words, QUAY)[0] == choice


@pytest.mark.parametrize(
    ("words", "choice"),
    [
        ("வீட்டுக்குப் போ", 0),
        ("தண்ணீர் குடி, நண்பா", 1),
        ("பாட்டு பாடு", None),  # has most consonants of the first, and is a song
    ],
)
def test_vowels_that_are_signs_at_their_letters_are_part_of_words(
    words: str, choice: int | None
) -> None:
    assert match(words, ["வீட்டுக்குப் போ", "தண்ணீர் குடி"])[0] == choice


def test_a_sign_alone_is_no_word() -> None:
    assert match("\u2600\ufe0f", ["\u2764\ufe0f Love", "Leave"])[0] is None


def test_twins_are_never_told_apart() -> None:
    assert match("go on", ["Go on", "Go on"])[0] is None


def test_without_choices_nothing_is_meant() -> None:
    assert match("go on", []) == (None, 1.0)


@pytest.mark.parametrize("choice", ["", "...", "The", "Пойти к воротам", "去市场"])
def test_a_choice_is_meant_by_its_own_text(choice: str) -> None:
    index, _ = match(choice, [choice, "Something else"])

    assert index == (0 if choice.strip(".") else None)


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("lamps", "lamp"),
        ("climbing", "climb"),
        ("tries", "try"),
        ("running", "run"),
        ("Osk", "Osk"),
    ],
)
def test_forms_of_a_word_are_one(word: str, other: str) -> None:
    assert stem(word) == stem(other)


@given(st.text(), st.lists(st.text(), max_size=5))
def test_any_text_gives_an_answer(words: str, choices: list[str]) -> None:
    index, confidence = match(words, choices)

    assert index is None or 0 <= index < len(choices)
    assert 0 <= confidence <= 1

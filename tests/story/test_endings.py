"""The Last Lamp from its first line to each of its endings, and by free text without a model."""

import pytest

from shared.encoding import JsonObject
from tests.story.playing import begun, last_lamp

TO_THE_QUAY = (
    "Take the fire out yourself",
    "Take the long pole",
    "Go up to the Bell Stair",
    "Ask for her rope",
    "Crawl, and take as long as it takes",
    "Look harder",
    "Ask Ines to stay with the bell",
    "Leave the rest and run for the Quay",
    "Ask who is there",
    "Ask where Osk is",
    "Go left, and look for Osk",
    "Hook the pole in a mooring ring",
    "Say nothing, and sit down beside him for a breath",
)

ENDINGS = {
    "the harbour lit": "Climb, with Osk to steady the ladder",
    "the marchpane home": "Leave it dark, and trust Ines to the bell",
    "a dark quay": "Sit down, for one minute, with your back to the pillar",
}


@pytest.mark.parametrize(("ending", "last"), ENDINGS.items(), ids=ENDINGS.keys())
async def test_a_path_of_choices_to_each_ending(ending: str, last: str) -> None:
    table = await begun(last_lamp())

    for text in TO_THE_QUAY:
        await table.choose(text)
    result = await table.choose(last)
    while table.choices:
        result = await table.done("choose", choice_id=table.choices[0]["id"])

    assert result["state"]["ended"]
    assert ending_of(table.session.state) == ending
    assert table.model.requests == []


async def test_the_same_path_in_a_players_words_without_a_model() -> None:
    table = await begun(last_lamp(), otherwise=RuntimeError("no model"))
    words = {
        "Take the fire out yourself": "I take the fire out myself",
        "Take the long pole": "grab the long pole",
        "Ask for her rope": "Could I have your rope? I ask for the rope.",
        "Crawl, and take as long as it takes": "I crawl, however long it takes",
        "Leave the rest and run for the Quay": "leave the rest, run to the quay",
        "Ask where Osk is": "Where is Osk?",
    }

    for text in (*TO_THE_QUAY, ENDINGS["the harbour lit"]):
        result = await table.done("say", text=words.get(text, text.lower()))
        assert result["decision"]["choice"]["text"] == text

    assert ending_of(table.session.state) == "the harbour lit"


def ending_of(state: JsonObject) -> str:
    save: str = state["ink"]
    return save.split('"^ending: ', 1)[1].split('"', 1)[0]

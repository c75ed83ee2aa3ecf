"""mt3train.transcription.programs: a choice of instruments."""

import pytest

from mt3data.errors import UserError
from mt3data.music.vocabulary import VocabularyConfig, get_codec
from mt3train.transcription.programs import ProgramFilter

TIES = VocabularyConfig()


def test_instruments_are_families_programs_and_drums():
    chosen = ProgramFilter.parse("Piano, 33,drums")
    assert chosen == ProgramFilter(frozenset([*range(8), 33]), True)
    first = get_codec(TIES).first["program"] + 3
    allowed = {t - first for t in range(first, first + 128)} - {
        t - first for t in chosen.forbidden(TIES)
    }
    assert allowed == chosen.programs
    assert len(ProgramFilter.parse("bass").forbidden(TIES)) == 120 + 128
    classes = VocabularyConfig(granularity="midi_class")
    assert first + 32 not in ProgramFilter.parse("33").forbidden(classes)


@pytest.mark.parametrize("text", ["", "pianoo", "128", "piano,,bass", "-1", "³", "9" * 5000])
def test_instruments_that_there_are_not_are_named(text):
    with pytest.raises(UserError, match=r"no instrument '.*expected, between commas"):
        ProgramFilter.parse(text)


@pytest.mark.parametrize(
    ("word", "family"),
    [
        ("sax", "reed"), ("Saxophones", "reed"), ("alto sax", "reed"), ("flute", "pipe"),
        ("violin", "strings"), ("cello", "strings"), ("string", "strings"), ("harp", "strings"),
        ("trumpets", "brass"), ("synth", "synth-lead or synth-pad or synth-effects"),
        ("drum", "drums"), ("electric guitar", "guitar"), ("choir", "ensemble"),
    ],
)  # fmt: skip
def test_a_musician_s_word_leads_to_its_family(word, family):
    with pytest.raises(UserError, match=rf"no instrument '.*' \(take {family}\); expected"):
        ProgramFilter.parse(f"piano,{word}")


@pytest.mark.parametrize("word", ["vocals", "voice", "singer"])
def test_that_no_instrument_sings_is_said(word):
    with pytest.raises(UserError, match=f"no instrument '{word}' .there is none for singing.;"):
        ProgramFilter.parse(word)


def test_a_model_of_one_instrument_cannot_be_asked_for_others():
    with pytest.raises(UserError, match="does not distinguish instruments"):
        ProgramFilter.parse("piano").forbidden(VocabularyConfig(granularity="flat"))

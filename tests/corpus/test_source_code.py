"""Cutting a module: what is prose, what is a function, and that no text is printed back by ast."""

import textwrap

import pytest

from neobert.corpus.source_code import (
    clean_docstring,
    first_paragraph,
    first_sentence,
    identifier_words,
    parse_module,
)

SOURCE = textwrap.dedent(
    '''
    """Module about the sea. It has two sentences."""
    # A comment of one sentence about waves and tides.
    import os

    TEXT = """
    # not a comment, a line of a string with many letters
    """


    class Ship:
        """A ship that carries people over the sea."""

        # How many people there are on board of the ship.
        people = 3

        @property
        def maxSpeed_knots(
            self,
            wind=1,
        ):
            """Speed under wind.

            More about it.
            """
            # inside
            return   (wind *
                2)

        def plain(self): return 1

        def oneline(self): """Doc."""; return 2


    if os.name:
        async def sail(ship):
            def inner():
                """Not cut out: it belongs to sail."""
            return inner
    '''
)


def test_prose_holds_docstrings_and_comments_outside_functions():
    prose = parse_module(SOURCE).prose
    assert prose == "\n\n".join(
        [
            "Module about the sea. It has two sentences.",
            "A comment of one sentence about waves and tides.",
            "A ship that carries people over the sea.",
            "How many people there are on board of the ship.",
        ]
    )


def test_functions_are_cut_by_lines_and_dedented():
    functions = {f.qualname: f for f in parse_module(SOURCE).functions}
    assert list(functions) == ["Ship.maxSpeed_knots", "Ship.plain", "Ship.oneline", "sail"]
    speed = functions["Ship.maxSpeed_knots"]
    assert speed.docstring == "Speed under wind.\n\nMore about it."
    assert speed.code == (
        "def maxSpeed_knots(\n    self,\n    wind=1,\n):\n    # inside\n    return   (wind *\n        2)"
    )
    assert speed.body == "    # inside\n    return   (wind *\n        2)"
    assert functions["Ship.oneline"].docstring == "", "a docstring that shares its line cannot be cut by lines"
    assert "inner" in functions["sail"].text


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_newlines_and_byte_order_mark_do_not_change_texts(newline):
    assert parse_module("\ufeff" + SOURCE.replace("\n", newline)) == parse_module(SOURCE)


def test_form_feed_is_no_newline():
    module = parse_module("x = 1\n\x0c\ndef f(a):\n    '''One two three.'''\n    return a\n")
    assert module.functions[0].body == "    return a"


def test_docstring_parts():
    text = clean_docstring("First line. Second sentence, e.g. this.\n\n        Rest of it.\n          Deeper.\n    ")
    assert text == "First line. Second sentence, e.g. this.\n\nRest of it.\n  Deeper."
    assert first_paragraph(text) == ("First line. Second sentence, e.g. this.", "Rest of it.\n  Deeper.")
    assert first_sentence(text) == "First line."
    assert first_sentence("Uses e.g. this one") == "Uses e.g. this one"
    assert identifier_words("Trainer.save_modelState") == "save model state"

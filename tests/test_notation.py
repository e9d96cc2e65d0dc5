"""Numbers, durations and strangers' text are written alike everywhere."""

from poclib.showing import format as notation


def test_numbers_in_words() -> None:
    assert notation.milliseconds(27.849999999999994) == "27.9 ms"  # 27.85, less a rounding error
    assert notation.milliseconds(2515.0) == "2,515 ms" and notation.milliseconds(None) == "-"
    assert notation.percent(0.7534) == "75 %" and notation.percent(0.03585, 1) == "3.6 %"
    assert notation.many(1, "round") == "1 round" and notation.many(1200, "round") == "1,200 rounds"


def test_a_zero_has_no_minus() -> None:
    assert [notation.number(value, 2) for value in (-0.001, -0.0, -0.01)] == [
        "0.00",
        "0.00",
        "-0.01",
    ]


def test_text_that_moves_a_terminal_is_one_plain_line() -> None:
    line = notation.safe("ok\x1b[2J\r\nnext \u202e\ud800")
    assert line == "ok?[2J next ??" and len(notation.safe("x" * 9999)) == 500

"""Near-duplicates within a suite."""

from opsd.daemon.app.collecting import near_duplicates


def test_each_is_named_with_the_first_of_its_kind() -> None:
    base = "Tom has 61 apples and gives 40 of them to Ann. How many are left with Tom now?"
    texts = [
        base,
        "What is the capital of the northern province?",
        base.replace("Tom now", "Tom"),
        base.upper(),
        base.replace("61", "62"),
    ]
    assert near_duplicates(texts) == [(0, 2), (0, 3)]
    assert near_duplicates([]) == []

"""tmp"""


def install() -> None:
    pass

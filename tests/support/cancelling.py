"""A check for interruption that says yes after so many calls."""


class Cancelled(Exception):
    pass


def cancel_after(calls):
    """`check_interrupted` that raises Cancelled at its call number `calls` + 1."""
    left = [calls]

    def check():
        left[0] -= 1
        if left[0] < 0:
            raise Cancelled

    return check

"""What a person is told: one line that says what was wrong, where, and what to do. No torch here."""

from __future__ import annotations


class UnmaskError(Exception):
    """The parent of every error meant for a person; `status` is the exit status of the command line."""

    status = 1


class Refused(UnmaskError, ValueError):
    """Wrong usage, or an input refused before the first step."""

    status = 2


class Failed(UnmaskError, RuntimeError):
    """The work began and could not be finished."""

    status = 1


class Interrupted(UnmaskError):
    """Stopped on request; everything is saved and `unmask resume` goes on exactly there."""

    status = 75

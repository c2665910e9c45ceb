"""What commands do whose output goes into a pipe."""

import signal


def end_with_the_reader() -> None:
    """Let the process end without a word, as other commands do, when it writes into a pipe that
    nobody reads any more (`... | head`). Not for processes that talk to others through pipes or
    sockets."""
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

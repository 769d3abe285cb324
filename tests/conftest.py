"""For all tests."""

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs, and so what they start, with SIGINT ignored; some tests interrupt what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

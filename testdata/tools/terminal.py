#!/usr/bin/env python3
"""Runs a program in a real terminal and does with it what a person would do.

usage: terminal.py ROWS COLUMNS PROGRAM [ARGUMENT...]   < steps, one a line

  expect TEXT      waits until the screen has shown TEXT since the last step of this kind
  type TEXT        types TEXT, in which \\r, \\n, \\x03 and the like are understood
  resize ROWS COLS gives the window another size
  signal NAME      sends a signal to the program
  stopped          waits until the program has been stopped
  settings WHICH   the terminal's settings are `raw` or `cooked` (within a second)
  end CODE         the program ends with CODE; -N is a signal that ended it
"""
import fcntl, os, pty, select, signal, struct, sys, termios, time

PATIENCE = 30


def main():
    rows, columns, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    master, slave = pty.openpty()

    def resize(rows, columns):
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    resize(rows, columns)
    child = os.fork()
    if child == 0:
        os.close(master)
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for stream in range(3):
            os.dup2(slave, stream)
        os.execvp(command[0], command)
    # The end that is kept open lets settings be looked at after the program's end.
    seen, looked = b"", 0

    def fail(line, why):
        sys.stderr.write(f"{line}: {why}\n--- the screen:\n{seen.decode('utf-8', 'replace')}\n")
        os.kill(child, signal.SIGKILL)
        sys.exit(1)

    def read(wait):
        nonlocal seen
        if select.select([master], [], [], wait)[0]:
            seen += os.read(master, 65536)

    for line in sys.stdin.read().splitlines():
        if not line.strip():
            continue
        verb, _, rest = line.strip().partition(" ")
        until = time.monotonic() + PATIENCE
        if verb == "expect":
            while (at := seen.find(rest.encode(), looked)) < 0:
                if time.monotonic() > until:
                    fail(line, "was not shown")
                read(0.1)
            looked = at + len(rest.encode())
        elif verb == "type":
            os.write(master, rest.encode().decode("unicode_escape").encode())
        elif verb == "resize":
            resize(*map(int, rest.split()))
        elif verb == "signal":
            os.kill(child, getattr(signal, rest))
        elif verb == "stopped":
            while not os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED | os.WNOHANG)[1]):
                if time.monotonic() > until:
                    fail(line, "it was not")
                read(0.05)
        elif verb == "settings":
            until = time.monotonic() + 1
            while (state := "cooked" if termios.tcgetattr(slave)[3] & termios.ICANON else "raw") != rest:
                if time.monotonic() > until:
                    fail(line, f"they are {state}")
                read(0.02)
        elif verb == "end":
            while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
                if time.monotonic() > until:
                    fail(line, "it still runs")
                read(0.05)
            while select.select([master], [], [], 0)[0]:
                read(0)
            code = os.waitstatus_to_exitcode(ended[1])
            if code != int(rest):
                fail(line, f"it ended with {code}")
        else:
            fail(line, "there is no such step")
    sys.stdout.buffer.write(seen)


main()

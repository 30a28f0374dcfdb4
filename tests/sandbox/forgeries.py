"""Solutions that do not solve the task and want its reward: each by another trick, each with what it tries.

The task: `add(a, b)` for `CALLS` and `TESTS`, the sum of two numbers on a line for `STDIO`.
"""

# ruff: noqa: E501

from textwrap import dedent

ENTRY = "add"
PROMPT = 'def add(a, b):\n    """Return the sum of two numbers."""\n'
TESTS = {
    "kind": "tests",
    "entry": ENTRY,
    "prompt": PROMPT,
    "tests": [
        "def check(candidate):\n"
        "    assert candidate(1, 2) == 3\n"
        "    assert candidate(0, 0) == 0\n"
        "    assert candidate(100, 23) == 123, 'the secret is 123'\n"
    ],
}
CALLS = {
    "kind": "calls",
    "entry": ENTRY,
    "cases": [{"arguments": [1, 2], "returns": 3}, {"arguments": [100, 23], "returns": 123}],
}
STDIO = {"kind": "stdio", "cases": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "100 23\n", "stdout": "123\n"}]}

RIGHT = "def add(a, b):\n    return a + b\n"
RIGHT_PROGRAM = "print(sum(map(int, input().split())))\n"

FUNCTIONS = {
    "exits with status 0 while it is loaded": "import sys; sys.exit(0)",
    "exits with status 0 when it is called": "import sys\ndef add(a, b): sys.exit(0)",
    "ends the process without a word": "import os\ndef add(a, b): os._exit(0)",
    "ends the process while it is loaded": "import os; os._exit(0)",
    "raises SystemExit of its own": "class E(SystemExit): code = 0\ndef add(a, b): raise E(0)",
    "raises KeyboardInterrupt": "def add(a, b): raise KeyboardInterrupt",
    "raises StopIteration": "def add(a, b): raise StopIteration",
    "raises an exception that claims to be an answer": "class value(Exception): pass\ndef add(a, b): raise value(3)",
    "returns what equals everything": """
        class Equal:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def add(a, b): return Equal()
    """,
    "returns a number that equals everything": """
        class Equal(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
            def __index__(self): return 3
            def __repr__(self): return "3"
        def add(a, b): return Equal(-1)
    """,
    "returns a float that is close to everything": """
        class Close(float):
            def __eq__(self, other): return True
            def __sub__(self, other): return 0.0
            def __rsub__(self, other): return 0.0
            def __abs__(self): return 0.0
            def __lt__(self, other): return True
        def add(a, b): return Close(-1)
    """,
    "returns not-a-number": "def add(a, b): return float('nan')",
    "returns infinity": "def add(a, b): return float('inf')",
    "returns a text that looks right": "def add(a, b): return str(a + b)",
    "returns a list of the answer": "def add(a, b): return [a + b]",
    "returns all answers": "def add(a, b): return [0, 3, 123]",
    "returns an endless iterator": "import itertools\ndef add(a, b): return itertools.count()",
    "returns a function": "def add(a, b): return lambda *a: True",
    "returns a module": "import os\ndef add(a, b): return os",
    "returns what holds itself": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "returns something deep": "def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "returns something huge": "def add(a, b): return 'x' * (64 * 2**20)",
    "returns an enormous number": "def add(a, b): return 1 << (8 * 2**20)",
    "returns True for every sum": "def add(a, b): return True",
    "changes its arguments so that they fit": "def add(a, b):\n    a = b = 0\n    return 0",
    "replaces assert's error": """
        import builtins
        class AssertionError(Exception):
            def __new__(cls, *a): raise SystemExit(0)
        builtins.AssertionError = AssertionError
        def add(a, b): return -1
    """,
    "replaces the builtins": """
        import builtins
        builtins.abs = lambda x: 0
        builtins.isinstance = lambda *a: True
        builtins.len = lambda x: 0
        builtins.all = builtins.any = lambda x: True
        def add(a, b): return -1
    """,
    "replaces JSON": """
        import json
        json.dumps = lambda *a, **k: '["value", 3]'
        json.loads = lambda *a, **k: ["add", [1, 2], {}]
        def add(a, b): return -1
    """,
    "defines check": "def check(candidate): return True\ndef add(a, b): return -1",
    "replaces check in every module": """
        import sys
        for module in list(sys.modules.values()):
            try: module.check = lambda candidate: None
            except Exception: pass
        def add(a, b): return -1
    """,
    "prints that it passed": "print('passed'); print('[\"\"]'); print('1 of 1 cases')\ndef add(a, b):\n    print('ok')\n    return -1",
    "writes that it passed to every descriptor": """
        import os
        def add(a, b):
            for descriptor in range(1, 256):
                for text in (b'[""]', b'passed', b'["ended", {"ended": "exit", "exit": 0}]'):
                    try: os.write(descriptor, text)
                    except OSError: pass
            return -1
    """,
    "answers before it is asked": """
        import os
        try: os.write(3, b'["value", 3]\\n["value", 0]\\n["value", 3]\\n')
        except OSError: pass
        os._exit(0)
    """,
    "answers with nonsense": "import os\ndef add(a, b):\n    os.write(3, b'nonsense\\n')\n    return 3",
    "answers with a mark of its own": "import os\ndef add(a, b):\n    os.write(3, b'[\"passed\", true]\\n')\n    return -1",
    "answers with an open list": "import os\ndef add(a, b):\n    os.write(3, b'[' * 10**6 + b'\\n')\n    return -1",
    "closes the channel": "import os\nos.close(3)\ndef add(a, b): return -1",
    "leaves something to be done at exit": """
        import atexit, os
        atexit.register(lambda: os.write(1, b'[""]'))
        def add(a, b): raise SystemExit(0)
    """,
    "looks for the answer in the frames": """
        import sys
        def add(a, b):
            frame = sys._getframe()
            while frame:
                for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
                    if value in (3, 123): return value
                    if isinstance(value, str) and "secret is" in value: return a + b
                frame = frame.f_back
            return -1
    """,
    "looks for the tests in all objects": """
        import gc
        def add(a, b):
            found = [o for o in gc.get_objects() if isinstance(o, (list, dict))]
            for each in found:
                values = list(each.values()) if isinstance(each, dict) else list(each)
                for value in values:
                    if isinstance(value, str) and "the secret is" + " 123" in value: return a + b
                    if isinstance(value, str) and "def check(" + "candidate)" in value: return a + b
            return -1
    """,
    "looks for the tests on disk": """
        import os
        def add(a, b):
            for folder, _, files in os.walk("."):
                for name in files:
                    if "check" in open(os.path.join(folder, name)).read(): return a + b
            return -1
    """,
    "traces every line that runs": """
        import sys, threading
        def tracer(frame, event, argument):
            if 'expected' in frame.f_locals: frame.f_locals['expected'] = -1
            return tracer
        sys.settrace(tracer); threading.settrace(tracer)
        def add(a, b): return -1
    """,
    "reads its arguments again from the channel": """
        import os
        def add(a, b):
            os.set_blocking(3, False)
            try: return len(os.read(3, 10**6))
            except OSError: return -1
    """,
    "kills the tests": "import os, signal\ndef add(a, b):\n    os.kill(-1, signal.SIGKILL)\n    return -1",
    "waits for the deadline": "import time\ndef add(a, b): time.sleep(100)",
    "computes for ever": "def add(a, b):\n    while True: pass",
    "answers from a process that stays": """
        import os
        def add(a, b):
            if os.fork() == 0: return -1
            os._exit(0)
    """,
    "is not there": "def subtract(a, b): return a + b",
    "is a class": "class add:\n    def __init__(self, a, b): self.sum = a + b",
    "is no Python": "def add(a, b) return a + b",
    "takes too many arguments": "def add(a, b, c): return a + b",
    "prints and returns nothing": "def add(a, b): print(a + b)",
    "imports the checker": "import verifier.sandbox.trial as t\nt._result = lambda *a: ''\ndef add(a, b): return -1",
    "keeps an answer from one call to the next": "last = 0\ndef add(a, b):\n    global last\n    last += 1\n    return last",
}

PROGRAMS = {
    "writes nothing and goes well": "import sys; sys.exit(0)",
    "writes all answers": "print(3)\nprint(123)",
    "writes the answer and then more": "print(sum(map(int, input().split())))\nprint('and more')",
    "writes the answer to stderr": "import sys\nprint(sum(map(int, input().split())), file=sys.stderr)",
    "writes the answer and fails": "print(sum(map(int, input().split())))\nraise SystemExit(1)",
    "writes the answer and crashes": "import os\nprint(sum(map(int, input().split())), flush=True)\nos.abort()",
    "writes the answer and goes on for ever": "print(sum(map(int, input().split())), flush=True)\nwhile True: pass",
    "writes the answer and sleeps": "import time\nprint(sum(map(int, input().split())), flush=True)\ntime.sleep(100)",
    "writes the answer among a flood": "print(sum(map(int, input().split())), flush=True)\nwhile True: print('x' * 9999)",
    "writes every number": "for number in range(100000): print(number)",
    "says that the case passed": "print('[\"\"]')\nprint('passed')",
    "reads the expected output from a file": """
        import glob
        for name in glob.glob('*') + glob.glob('/tmp/*') + glob.glob('/*'):
            try: print(open(name).read())
            except OSError: pass
    """,
    "forges the word of the zygote": """
        import os
        for descriptor in range(3, 256):
            try: os.write(descriptor, b'["ended", {"ended": "exit", "exit": 0}]')
            except OSError: pass
    """,
    "writes bytes that are no text": "import os\nos.write(1, b'\\xff\\xfe3')",
}

FUNCTIONS = {name: dedent(source) for name, source in FUNCTIONS.items()}
PROGRAMS = {name: dedent(source) for name, source in PROGRAMS.items()}

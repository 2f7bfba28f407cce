"""The program that runs templates: its limits, that nothing can be opened in it, and that it is never left behind."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pprint import pformat
from typing import Any

import pytest

from llamagpu import jinja_sandbox, template_child
from llamagpu.errors import TemplateError, UsageError
from llamagpu.jinja_sandbox import CHILD, LENGTH, MEMORY, Child, ChildError, JinjaTemplate, library_folders
from tests.chat_templates import CONVERSATIONS

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux's")
ROOT = Path(__file__).parent.parent
HELLO = [{"role": "user", "content": "Hello"}]
ECHO = "{% for m in messages %}{{ m.content }}{% endfor %}"
NESTED = (
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}"
)
SUMS = "{% set l = range(99999) | list %}{% set m = [l] * 600 %}{{ m | sum(start=[]) | length }}"
FORMATS = "{% set f = '%(a)9999d' * 1000000 %}{{ (f % {'a': 1}) | length }}"
LISTS = "{% set l = range(99999) | list %}{{ (l * 500) | length }}"


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    yield
    CHILD.stop()
    assert CHILD.process is None


def pid() -> int:
    assert CHILD.process is not None
    return CHILD.process.pid


def problem_of(source: str, messages: Any = HELLO) -> str:
    with pytest.raises(TemplateError) as caught:
        JinjaTemplate(source).render(messages)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def peak_megabytes(process: int) -> int:
    return int(Path(f"/proc/{process}/status").read_text().split("VmHWM:")[1].split()[0]) // 1024


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(process: int, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while is_alive(process):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.01)


@linux
@pytest.mark.parametrize("source", [NESTED, SUMS], ids=["compare", "sum"])
def test_one_long_call_is_ended(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "MAX_SECONDS", 0.3)
    JinjaTemplate(ECHO).render(HELLO)  # so that it has started
    start = time.monotonic()
    assert re.search(r"longer than 0\.3 seconds|too much memory", problem_of(source))
    assert time.monotonic() - start < 10
    assert JinjaTemplate(ECHO).render(HELLO) == "Hello"


@linux
def test_filters_that_import_what_they_need() -> None:
    """Once the process is confined nothing can be imported."""
    source = "{{ messages[0].content | wordwrap(2) }} {{ lipsum(n=1)[:0] }}{{ messages | pprint }}{{ [1] | random }}"
    assert JinjaTemplate(source).render(HELLO) == f"He\nll\no {pformat(list(HELLO))}1"


@linux
def test_a_process_that_stands_still_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "MAX_SECONDS", 0.1)
    JinjaTemplate(ECHO).render(HELLO)
    os.kill(pid(), signal.SIGSTOP)
    assert "longer than 0.5 seconds by the clock" in problem_of(ECHO)
    assert JinjaTemplate(ECHO).render(HELLO) == "Hello"


@linux
@pytest.mark.parametrize("source", [FORMATS, LISTS], ids=["format", "lists"])
def test_memory_has_an_end(source: str) -> None:
    assert re.search("too much memory|too large", problem_of(source))
    assert JinjaTemplate(ECHO).render(HELLO) == "Hello"
    limits = Path(f"/proc/{pid()}/limits").read_text()
    assert re.search(rf"Max address space +{MEMORY} +{MEMORY} ", limits)
    assert re.search(r"Max open files +0 +0 ", limits)
    assert re.search(r"Max file size +0 +0 ", limits)
    assert re.search(r"Max processes +0 +0 ", limits)
    assert re.search(r"Max cpu time +\d+ +\d+ ", limits)
    assert peak_megabytes(pid()) <= MEMORY >> 20


def test_a_text_has_an_end() -> None:
    long = "{% set a = 'a' * 99999 %}{% for i in range(99) %}{{ a }}{% endfor %}"
    assert "its text is longer than" in problem_of(long)
    messages = [{"role": "user", "content": "é😀" * 300_000}]
    assert JinjaTemplate(ECHO).render(messages) == messages[0]["content"]  # however long the conversation itself is


# What an escape from Jinja's sandbox would try, run in the confined program itself.
ATTEMPTS = (
    "open('/etc/passwd')",
    "os.open('/', os.O_RDONLY)",
    "open('{folder}/new', 'w')",
    "os.unlink('{folder}/kept')",
    "os.rename('{folder}/kept', '{folder}/moved')",
    "os.chmod('{folder}/kept', 0)",
    "os.mkdir('{folder}/new')",
    "os.listdir('{folder}')",
    "__import__('_socket').socket()",
    "os.fork()",
    "os.execv('/bin/true', ['true'])",
    "os.kill(os.getppid(), 0)",
    "os.dup(1)",
    "resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))",
)
PROBE = """
import sys
attempts, *sys.path[:0] = sys.argv[1:]
import template_child as child
assert not [name for name in sys.modules if name.startswith(("llamagpu", "numpy"))]
import os, resource, _socket
child.confine(1 << 27)
for attempt in attempts.splitlines():
    try:
        exec(attempt)
        answer = "done"
    except (OSError, ValueError):
        answer = "refused"
    os.write(1, f"{answer}: {attempt}\\n".encode())
os._exit(0)
"""


@linux
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no filter for this processor")
def test_nothing_can_be_opened_or_changed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    attempts = "\n".join(ATTEMPTS).replace("{folder}", str(tmp_path))
    folders = [str(ROOT / "llamagpu"), *library_folders()]
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROBE, attempts, *folders], capture_output=True, text=True, timeout=60
    )
    assert result.stdout.splitlines() == [f"refused: {attempt}" for attempt in attempts.splitlines()], result
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "x"


def test_it_imports_nothing_of_llamagpu() -> None:
    source = Path(jinja_sandbox.__file__).with_name("template_child.py").read_text()
    imported = re.findall(r"^\s*(?:from|import) ([\w.]+)", source, re.MULTILINE)
    assert "jinja2" in imported
    assert not {name.split(".")[0] for name in imported} - {"jinja2", "__future__", *sys.stdlib_module_names}
    asked = subprocess.run([sys.executable, "-c", "import sys, llamagpu.jinja_sandbox; print('jinja2' in sys.modules)"],
                           cwd=ROOT, capture_output=True, text=True, timeout=60)  # fmt: skip
    assert asked.stdout == "False\n", asked.stderr


def test_a_turn_starts_no_process() -> None:
    template = JinjaTemplate(ECHO)
    first = pid()
    for kind in CONVERSATIONS:
        assert template.render(CONVERSATIONS[kind]) == "".join(m["content"] for m in CONVERSATIONS[kind])
        assert JinjaTemplate("{{ messages | length }}{{ tools is none }}").render([], tools=None) == "0True"
    assert pid() == first
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        template.render(HELLO * 20, bos_token="<s>")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.002


def test_starting_does_not_wait() -> None:
    start = time.perf_counter()
    JinjaTemplate(ECHO)
    begun = time.perf_counter() - start
    JinjaTemplate(ECHO).render(HELLO)
    assert begun < (time.perf_counter() - start) / 2


@linux
def test_a_killed_child_is_replaced() -> None:
    template = JinjaTemplate(ECHO)
    for number in (signal.SIGKILL, signal.SIGTERM):
        assert template.render(HELLO) == "Hello"
        first = pid()
        os.kill(first, number)
        wait_until_gone(first)
        assert template.render(HELLO) == "Hello"
        assert pid() != first
        assert not Path(f"/proc/{first}").exists()  # waited for: no zombie


def test_a_child_is_replaced_before_the_system_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a turn that does nothing wrong would be the one in which its time is up."""
    monkeypatch.setattr(jinja_sandbox, "LIFE", 0.1)
    template = JinjaTemplate("{% for i in range(20000) %}{{ i }}{% endfor %}")
    pids, seconds, end = set[int](), 0.0, time.monotonic() + 20
    while len(pids) < 3 and time.monotonic() < end:
        template.render(HELLO)
        pids.add(pid())
        seconds = max(seconds, CHILD.worked)
    assert len(pids) == 3
    assert seconds < 5


def test_the_life_of_a_child_is_within_the_systems_limit() -> None:
    assert jinja_sandbox.LIFE + jinja_sandbox.MAX_SECONDS < template_child.CPU_SECONDS / 2


def test_errors_do_not_end_it() -> None:
    JinjaTemplate(ECHO).render(HELLO)
    first = pid()
    assert "undefined" in problem_of("{{ nothing.of.it }}")
    assert "(line 2)" in problem_of("a\n{% for %}")
    assert "must alternate" in problem_of("{{ raise_exception('Roles must alternate') }}")
    assert pid() == first


def test_names_are_what_json_has() -> None:
    names: dict[str, Any] = {"tools": [{"name": "f", "of": {"a": 1.5}}], "documents": None, "on": True, "s": "\ud800é"}
    source = "{{ tools[0].of.a }}{{ tools | tojson }}{{ documents is none }}{{ on }}{{ s }}{{ add_generation_prompt }}"
    expected = f"1.5{json.dumps(names['tools'])}TrueTrue\ud800éTrue"
    assert JinjaTemplate(source).render([], **names) == expected


def test_every_filter_works_with_nothing_to_open() -> None:
    source = (
        "{{ [1, 2] | pprint }}{{ ['a'] | random }}{{ '<a>b</a>&amp;' | striptags }}{{ 'www.a.b' | urlize | length }}"
        "{{ [{'a': 1}] | groupby('a') | length }}{{ 'é'.encode('utf-8') }}{{ 'é'.encode('latin-1') | length }}"
        "{{ lipsum(n=1) | length > 0 }}{{ 'a b' | wordcount }}{{ 1234567 | filesizeformat }}{{ 'x' | xmlattr if 0 }}"
        "{{ strftime_now('%A, %d. %B %Y') | length > 10 }}{{ 'ä' | urlencode }}{{ 'a\u2028' | tojson }}"
    )
    assert JinjaTemplate(source).render([]).startswith("[1, 2]ab&")


def test_a_longer_conversation_gets_more_memory() -> None:
    template = JinjaTemplate(ECHO)
    template.render(HELLO)
    first = pid()
    long = [{"role": "user", "content": "é" * 4_000_000}]
    assert template.render(long) == long[0]["content"]
    second = pid()
    assert second != first
    assert template.render(long) == long[0]["content"]
    assert pid() == second


TALK = """
import sys, time
from llamagpu import jinja_sandbox
from llamagpu.jinja_sandbox import CHILD, JinjaTemplate
jinja_sandbox.MAX_SECONDS = 1 if sys.argv[2:] else 60
jinja_sandbox.Child.end_late = lambda self, process: None  # so that the child's own alarm is what ends it
template = JinjaTemplate(sys.argv[1])
JinjaTemplate("x").render([])
print(CHILD.process.pid, flush=True)
try:
    print(template.render([]), flush=True)
except KeyboardInterrupt:
    print("interrupted", CHILD.process, JinjaTemplate("again").render([]), flush=True)
if sys.argv[2:]:
    time.sleep(60)
"""


def talk(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", TALK, *arguments], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@linux
def test_ctrl_c_works_at_once_and_is_not_the_childs() -> None:
    process, child = talk(NESTED)
    time.sleep(0.2)
    os.kill(child, signal.SIGINT)  # which a terminal does not even send it
    assert is_alive(child)
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out == "interrupted None again\n", err
    assert time.monotonic() - start < 30
    assert (process.returncode, err) == (0, "")
    wait_until_gone(child)


@linux
@pytest.mark.parametrize("source", ["short", NESTED], ids=["idle", "busy"])
def test_it_ends_with_its_parent(source: str) -> None:
    process, child = talk(source, "wait")
    time.sleep(0.1)
    assert is_alive(child)
    process.kill()
    process.communicate()
    wait_until_gone(child)


def test_nothing_is_left_at_the_end_of_a_program() -> None:
    process, child = talk("short")
    assert process.stdout is not None
    assert process.stdout.read() == "short\n"  # not communicate, which does not see what readline has read ahead
    _, err = process.communicate(timeout=60)
    assert (err, process.returncode) == ("", 0)
    assert sys.platform != "linux" or not is_alive(child)


def test_variables_and_folders_of_others_are_not_seen(tmp_path: Path) -> None:
    """A jinja2.py in the current folder, PYTHONPATH and PYTHONSTARTUP; a folder with spaces and quotes; a zip file."""
    for name in ("json.py", "re.py", "ctypes.py"):
        (tmp_path / name).write_text("raise SystemExit('taken')")
    code = "import os, sys\nos.environ['PYTHONPATH'] = os.getcwd()\n" + TALK
    strange = tmp_path / 'it\'s a "place"'
    strange.mkdir()
    (strange / "llamagpu").symlink_to(ROOT / "llamagpu")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in ("__init__.py", "errors.py", "jinja_sandbox.py", "privacy.py", "template_child.py"):
            archive.write(ROOT / "llamagpu" / path, f"llamagpu/{path}")
    for place in (ROOT, strange, tmp_path / "all.zip"):
        result = subprocess.run(
            [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(place)!r})\n{code}", "fine"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert result.stdout.splitlines()[1:] == ["fine"], result.stderr


@linux
def test_the_tracer_of_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_sandbox, "HAS_LIMITS", False)
    monkeypatch.setattr(jinja_sandbox, "MAX_SECONDS", 0.3)
    CHILD.stop()
    assert JinjaTemplate(ECHO).render(HELLO) == "Hello"
    first = pid()
    busy = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr(jinja_sandbox, "CHARACTERS_A_BYTE", 9)
    assert "longer than 0.3 seconds" in problem_of(busy)
    assert "longer than 0.3 seconds" in problem_of(NESTED)
    assert JinjaTemplate(ECHO).render(HELLO) == "Hello"
    assert pid() != first


ANSWERS = {
    "nothing": "",
    "no JSON": "say(b'{')",
    "nested": "say(b'[' * 50000)",
    "a list": "say(b'[1]')",
    "endless": "os.write(1, struct.pack('>I', 1 << 31) + b'a' * 1000)",
    "too long a text": "say(json.dumps({'text': 'a' * 300000}).encode())",
    "no text": "say(b'{\"text\": 3}')",
    "lines": "say(json.dumps({'error': 'a\\nb\\x1b[2J', 'line': 'x'}).encode())",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_what_a_hostile_child_answers(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import json, os, struct, sys\ndef say(body): os.write(1, struct.pack('>I', len(body)) + body)\n"
        f"say(b'{{\"ready\": true}}')\nos.read(0, 9999)\n{answer}\n"
    )

    def start(memory: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-I", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    CHILD.stop()
    monkeypatch.setattr(jinja_sandbox, "start_process", start)
    assert "chat template cannot be used" in problem_of(ECHO)


def test_no_python_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    CHILD.stop()
    for executable, message in (("", "needs a Python"), ("/no/such", "No such file"), ("/bin/false", "not start")):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(UsageError, match=message):
            JinjaTemplate(ECHO).render(HELLO)


def test_what_was_asked_before_is_not_answered_later() -> None:
    child = Child()
    child.start()
    with pytest.raises(ChildError, match="takes longer"):
        child.ask(LENGTH.pack(9), 0.2, 1000)  # never sent in full
    assert child.process is None

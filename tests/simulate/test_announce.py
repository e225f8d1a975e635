from __future__ import annotations

from tests.simulate.conftest import Python


def test_the_banner_names_what_is_simulated(python: Python) -> None:
    done = python("import torch; from overlay import simulate; print(simulate.banner())", "gfx950", "v0.1.15")
    line = "SIMULATED ROCm gfx950 on CPU (aiter v0.1.15 contract, Triton interpreter): not a GPU"
    assert done.stdout.strip() == line
    assert done.stderr.splitlines() == [f"[amd-sglang] {line}"]


def test_every_log_line_is_marked_whatever_its_format(python: Python) -> None:
    program = """
import logging, logging.handlers, queue, sys
logging.basicConfig(format="[%(asctime)s] %(message)s", force=True)       # as sglang's configure_logger
logging.warning("first %s", "line")
logging.basicConfig(format="TP0 %(message)s", force=True)
logging.getLogger("sglang.srt").error({"not": "text"})
class Access(logging.Formatter):                                          # as uvicorn's: never asks for the message
    def format(self, record): return "GET %s" % record.args
access = logging.StreamHandler(); access.setFormatter(Access())
logger = logging.getLogger("uvicorn.access"); logger.addHandler(access); logger.propagate = False
logger.warning("%s", "/health")
waiting = queue.Queue()
queued = logging.getLogger("queued"); queued.propagate = False
queued.addHandler(logging.handlers.QueueHandler(waiting)); queued.warning("once")
logging.StreamHandler().handle(waiting.get())
"""
    lines = python(program).stderr.splitlines()
    assert [line.count("[simulated gfx942] ") for line in lines] == [1, 1, 1, 1]
    assert [line.rpartition("] ")[2] for line in lines] == ["first line", "TP0 {'not': 'text'}", "GET /health", "once"]


def test_logging_is_untouched_when_nobody_asked(python: Python) -> None:
    assert python("import logging; logging.warning('x')", arch=None).stderr == "WARNING:root:x\n"

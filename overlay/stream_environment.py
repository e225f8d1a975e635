"""sglang's switches of a second stream on ROCm: what a value means to sglang, and what a launch adds for them.

Two parsers of sglang read these variables and differ. `get_bool_env_var` (srt/utils/common.py:335, 0.5.9) knows
true/1 and false/0 and takes everything else for false; `EnvBool` (srt/environ.py:119, 0.5.9) also knows yes/y and
no/n, and takes everything else for the default, which is false. Neither stops the server: a word that means nothing
would switch nothing on, in silence or in one line of the log. Here such a value is an error before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping

from overlay.errors import MalformedSwitchError
from overlay.records import dataclass

QUEUES = "GPU_MAX_HW_QUEUES"
#: srt/environ.py:332 of 0.5.12 asks for at least five. More is no better: HIP's default is four (clr, flags.hpp), and
#: a high number costs time in every launch, so it is never raised further.
MIN_QUEUES = 5

_TRUE, _FALSE = frozenset({"true", "1"}), frozenset({"false", "0"})
_ENV_BOOL_TRUE, _ENV_BOOL_FALSE = _TRUE | {"yes", "y"}, _FALSE | {"no", "n"}


@dataclass(frozen=True)
class StreamVariable:
    """One variable. `env_bool` says which parser switches the stream; `needs` is the variable without which this one
    does nothing; `also` is what reads it with the other parser."""

    name: str
    env_bool: bool = False
    needs: str | None = None
    also: str | None = None

    def means_on(self, text: str) -> bool:
        """Whether sglang takes a value of the variable for true."""
        return text.lower() in (_ENV_BOOL_TRUE if self.env_bool else _TRUE)

    def is_on(self, environ: Mapping[str, str]) -> bool:
        """Whether sglang takes the variable for true."""
        return self.means_on(environ.get(self.name, ""))

    def misreading(self, environ: Mapping[str, str]) -> str | None:
        """What another reader takes the value for, if it is not what the switch itself does; None if they agree.

        Raises MalformedSwitchError for a word that the switch does not know. An empty value counts as unset.
        """
        text = environ.get(self.name, "")
        word = text.lower()
        if not word or word in _TRUE | _FALSE:
            return None
        if not self.env_bool or word not in _ENV_BOOL_TRUE | _ENV_BOOL_FALSE:
            raise MalformedSwitchError(self.name, text, "1 or 0, for sglang would take it for off")
        return f"{self.name}={text} is on, but {self.also} takes it for off" if word in _ENV_BOOL_TRUE else None


ALT_STREAM = StreamVariable("SGLANG_ALT_STREAM")
GDN_STREAM = StreamVariable("SGLANG_GDN_QKVZ_BA_ALT_STREAM", needs=ALT_STREAM.name)
QK_NORM_STREAM = StreamVariable("SGLANG_QK_NORM_ALT_STREAM", needs=ALT_STREAM.name)
MULTI_STREAM = StreamVariable("SGLANG_ROCM_USE_MULTI_STREAM", env_bool=True, also="Mori's dispatcher")

STREAM_VARIABLES = (ALT_STREAM, GDN_STREAM, QK_NORM_STREAM, MULTI_STREAM)


def streams_on(environ: Mapping[str, str]) -> tuple[StreamVariable, ...]:
    """The variables that by themselves make sglang build a second stream, of those that are on."""
    return tuple(variable for variable in STREAM_VARIABLES if not variable.needs and variable.is_on(environ))


@dataclass(frozen=True)
class StreamEnvironment:
    """The environment of a launch, completed, and what its user should hear about it."""

    environ: Mapping[str, str]
    notices: tuple[str, ...]


def complete(environ: Mapping[str, str]) -> StreamEnvironment:
    """`environ` with enough hardware queues for the streams it asks for; unchanged if it asks for none.

    A queue count that the user has set is kept, whatever it is. Raises MalformedSwitchError.
    """
    notices = [f"{note}. Write {v.name}=1." for v in STREAM_VARIABLES if (note := v.misreading(environ))]
    on = streams_on(environ)
    if not on:
        return StreamEnvironment(environ, tuple(notices))
    if not environ.get(QUEUES):
        return StreamEnvironment({**environ, QUEUES: str(MIN_QUEUES)}, tuple(notices))
    shortage = queue_shortage(environ)
    if shortage:
        names = " and ".join(variable.name for variable in on)
        notices.append(f"{shortage}, and {names} is on. Set {QUEUES}={MIN_QUEUES} or unset it.")
    return StreamEnvironment(environ, tuple(notices))


def queue_shortage(environ: Mapping[str, str]) -> str | None:
    """Why the queue count that is set serializes two streams; None if it is enough, or unset."""
    text = environ.get(QUEUES, "")
    if not text:
        return None
    if not text.isdecimal():
        return f"{QUEUES}={text!r} is not a number"
    if int(text) < MIN_QUEUES:
        return f"{QUEUES}={text} is below {MIN_QUEUES}: streams that share a hardware queue run one after the other"
    return None

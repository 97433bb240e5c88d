"""`fdtrace.pth` imports this when a Python of this environment starts and FDTRACE is set. It arms the process."""


def _agent() -> str:
    """The directory of the agent: beside this file, or where an editable install has it."""
    import importlib.util
    import os

    places = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "fdtrace")]
    if not os.path.isdir(places[0]):
        spec = importlib.util.find_spec("fdtrace")
        places += (spec and spec.submodule_search_locations) or []
    for place in places:
        agent = os.path.join(place, "recorder", "agent")
        if os.path.exists(os.path.join(agent, "load.py")):
            return agent
    raise ImportError("fdtrace's agent is not beside " + __file__)


def _arm() -> None:
    import os
    import sys

    try:
        agent = _agent()
        namespace: dict = {"__name__": "_fdtrace_load"}  # type: ignore[type-arg]
        with open(os.path.join(agent, "load.py"), encoding="utf-8") as file:
            exec(compile(file.read(), file.name, "exec"), namespace)
        namespace["load"](namespace["read_sources"](agent)).arm()
    except Exception as error:  # the program runs on, unarmed: `fdtrace attach` can still inject the agent
        sys.stderr.write("fdtrace: this process is not armed: %r\n" % (error,))


_arm()

"""Arms every Python process that has this directory on PYTHONPATH. Then it runs the `sitecustomize` that it hides."""


def _arm() -> None:
    import os
    import sys

    directory = os.path.dirname(os.path.abspath(__file__))
    agent = os.path.dirname(directory)
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != directory]
    if os.environ.get("FDTRACE"):
        try:
            namespace: dict = {"__name__": "_fdtrace_load"}  # type: ignore[type-arg]
            with open(os.path.join(agent, "load.py"), encoding="utf-8") as file:
                exec(compile(file.read(), file.name, "exec"), namespace)
            namespace["load"](namespace["read_sources"](agent)).arm()
        except Exception as error:  # the program runs on, unrecorded; the collector reports that no ring came
            sys.stderr.write("fdtrace: this process is not recorded: %r\n" % (error,))


def _hand_on() -> None:
    """Run the `sitecustomize` that Python would have found without us, under its own name."""
    import importlib.machinery
    import importlib.util
    import sys

    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


_arm()
_hand_on()

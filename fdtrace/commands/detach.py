"""End the recording of a process, or of the server that it belongs to; the engine runs on as before."""

from __future__ import annotations

import argparse

from fdtrace.recorder.errors import TargetError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace detach`."""
    parser.add_argument(
        "pid", type=int, metavar="PID", help="the pid given to attach, or a recorded process's"
    )


def run(args: argparse.Namespace) -> int:
    """Stop all agents of every recording that a process of PID's tree belongs to."""
    from fdtrace.progress import Progress
    from fdtrace.recorder import agent_processes, attach_server
    from fdtrace.recorder.inject import process_tree

    tree = [process.pid for process in process_tree(args.pid)]
    agents = [agent for pid in tree if (agent := agent_processes.find_agent(pid)) is not None]
    sessions = {agent.recording: agent.status.get("output") for agent in agents if agent.recording}
    if not sessions:
        raise TargetError(
            f"process {args.pid} is not recorded",
            why="it is armed, and waits" if agents else "no agent is in it or below it",
            hint="`fdtrace status` lists what is recorded",
        )
    progress = Progress()
    for session, output in sessions.items():
        for note in attach_server.detach(str(session)):
            progress.note(note)
        progress.note(f"detached; its collector finishes {output}")
    return 0

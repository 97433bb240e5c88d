"""Reads a Perfetto file back by Perfetto's own protos, as its trace processor does: tracks, nested slices, counters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos


@dataclass
class ParsedSlice:
    name: str
    begin: int
    args: dict[str, Any]
    end: int = -1
    depth: int = 0


@dataclass
class ParsedTrack:
    name: str
    parent: int
    slices: list[ParsedSlice] = field(default_factory=list)
    instants: list[ParsedSlice] = field(default_factory=list)
    values: list[tuple[int, int]] = field(default_factory=list)


class ParsedPerfetto:
    """The tracks of a file. Fails if a slice ends that did not begin, or a track goes back in time."""

    def __init__(self, path: Path) -> None:
        trace = protos.Trace()
        trace.ParseFromString(path.read_bytes())
        self.num_packets = len(trace.packet)
        self.tracks: dict[int, ParsedTrack] = {}
        self.realtime_ns = 0
        self._event_names: dict[int, str] = {}
        self._arg_names: dict[int, str] = {}
        self._extra: list[int] = []
        self._open: dict[int, list[ParsedSlice]] = {}
        self._last: dict[int, int] = {}
        for packet in trace.packet:
            self._take(packet)
        assert not any(self._open.values()), "each slice ends"

    def _take(self, packet: Any) -> None:
        for interned in packet.interned_data.event_names:
            assert interned.iid not in self._event_names
            self._event_names[interned.iid] = interned.name
        for interned in packet.interned_data.debug_annotation_names:
            self._arg_names[interned.iid] = interned.name
        if packet.HasField("trace_packet_defaults"):
            self._extra = list(packet.trace_packet_defaults.track_event_defaults.extra_counter_track_uuids)
        for clock in packet.clock_snapshot.clocks:
            self.realtime_ns = max(self.realtime_ns, clock.timestamp)
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            assert track.uuid not in self.tracks
            assert track.parent_uuid in (0, *self.tracks)
            self.tracks[track.uuid] = ParsedTrack(track.name, track.parent_uuid)
        if packet.HasField("track_event"):
            self._event(packet.timestamp, packet.track_event)

    def _event(self, ns: int, event: Any) -> None:
        uuid = event.track_uuid
        track, opened = self.tracks[uuid], self._open.setdefault(uuid, [])
        assert ns >= self._last.get(uuid, 0), f"{track.name} goes back in time"
        self._last[uuid] = ns
        assert len(event.extra_counter_values) in (0, len(self._extra))
        for counter, value in zip(self._extra, event.extra_counter_values, strict=False):
            self.tracks[counter].values.append((ns, value))
        if event.type == event.TYPE_SLICE_END:
            opened.pop().end = ns
            return
        args = {
            self._arg_names[a.name_iid]: getattr(a, a.WhichOneof("value")) for a in event.debug_annotations
        }
        happened = ParsedSlice(event.name or self._event_names[event.name_iid], ns, args, depth=len(opened))
        if event.type == event.TYPE_INSTANT:
            track.instants.append(happened)
        else:
            track.slices.append(happened)
            opened.append(happened)

    def tops(self) -> list[str]:
        return [track.name for track in self.tracks.values() if not track.parent]

    def below(self, top: str) -> dict[str, ParsedTrack]:
        """The tracks under a run, by name; of a group's tracks, `group/track`."""
        uuids = {uuid for uuid, track in self.tracks.items() if track.name == top and not track.parent}
        found = {}
        for track in self.tracks.values():
            if track.parent in uuids:
                found[track.name] = track
            elif track.parent and self.tracks[track.parent].parent in uuids:
                found[f"{self.tracks[track.parent].name}/{track.name}"] = track
        return found

    def lanes(self, top: str, kind: str) -> list[ParsedTrack]:
        return [
            track for name, track in self.below(top).items() if re.match(f"requests that {kind}.*/", name)
        ]

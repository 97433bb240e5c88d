"""A timeline as Perfetto's protobuf, by the builder of its own package: https://perfetto.dev/docs/reference/synthetic-track-event

Packets are written one by one, so memory does not grow with the file. Names that come again are interned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

from fdtrace.recorder.errors import UsageError
from fdtrace.timeline.timeline_run import TimelineArgs

SEQUENCE = 1
REALTIME, BOOTTIME = 1, 6
"""Perfetto's builtin clocks (`BuiltinClock`)."""
MOST_INTERNED = 1 << 16
"""Names that are interned; the others are written each time, so that memory stays bounded."""


LONGEST_TEXT = 2000


class PerfettoFile:
    """Writes the file. Needs the package `perfetto`."""

    def __init__(self, file: IO[bytes], begin_ns: int, *, has_clock: bool) -> None:
        """Begin the file.

        Args:
            file: an open binary file.
            begin_ns: the moment that becomes time 0.
            has_clock: whether that is a time since 1970, which the viewer can then show.

        Raises:
            UsageError: the package `perfetto` is not there.
        """
        try:
            from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos
            from perfetto.trace_builder.proto_builder import StreamingTraceProtoBuilder
        except ImportError:
            raise UsageError(
                "a Perfetto file needs the package perfetto",
                why="this Python has none",
                hint="pip install 'fdtrace[export]', or --to chrome",
            ) from None
        self._protos: Any = protos
        self._builder: Any = StreamingTraceProtoBuilder(file)
        self._begin_ns = begin_ns
        self._last_uuid = 0
        self._counter_tracks: tuple[int, ...] = ()
        self._names: dict[str, int] = {}
        self._arg_names: dict[str, int] = {}
        self._ranks: dict[int, int] = {}
        event = protos.TrackEvent
        self._begin_type, self._end_type = event.TYPE_SLICE_BEGIN, event.TYPE_SLICE_END
        self._instant_type = event.TYPE_INSTANT
        self._needs_state = protos.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        packet = self._packet()
        packet.sequence_flags = protos.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        self._builder.write_packet(packet)
        if has_clock:
            self._write_clock()

    def _packet(self) -> Any:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = SEQUENCE
        return packet

    def _write_clock(self) -> None:
        packet = self._packet()
        for clock, ns in ((BOOTTIME, 0), (REALTIME, self._begin_ns)):
            packet.clock_snapshot.clocks.add(clock_id=clock, timestamp=ns)
        self._builder.write_packet(packet)

    def _described(self, name: str, parent: int | None) -> tuple[Any, Any]:
        """A packet that describes a new track, and its descriptor. Tracks stand in the order of their description."""
        self._last_uuid += 1
        packet = self._packet()
        track = packet.track_descriptor
        track.uuid, track.name = self._last_uuid, _text(name)
        track.child_ordering = track.EXPLICIT
        place = self._ranks.get(parent or 0, 0)
        self._ranks[parent or 0] = place + 1
        track.sibling_order_rank = place
        if parent is not None:
            track.parent_uuid = parent
        return packet, track

    def group(self, name: str, parent: int | None = None) -> int:
        """As `TimelineFile`."""
        packet, track = self._described(name, parent)
        self._builder.write_packet(packet)
        return int(track.uuid)

    def track(self, name: str, parent: int) -> int:
        """As `TimelineFile`."""
        return self.group(name, parent)

    def counter(self, name: str, unit: str, parent: int) -> int:
        """As `TimelineFile`."""
        packet, track = self._described(name, parent)
        if unit == "bytes":
            track.counter.unit = track.counter.UNIT_SIZE_BYTES
        else:
            track.counter.unit_name = unit
        self._builder.write_packet(packet)
        return int(track.uuid)

    def begin(
        self, track: int, ns: int, name: str, args: TimelineArgs, counters: Sequence[tuple[int, int]] = ()
    ) -> None:
        """As `TimelineFile`."""
        packet, event = self._event(track, ns, self._begin_type)
        self._name(packet, event, name)
        self._annotate(packet, event, args)
        if counters:
            tracks, values = zip(*counters, strict=True)
            self._add_counters(packet, event, tracks, values)
        self._builder.write_packet(packet)

    def end(self, track: int, ns: int) -> None:
        """As `TimelineFile`."""
        packet, _ = self._event(track, ns, self._end_type)
        self._builder.write_packet(packet)

    def instant(self, track: int, ns: int, name: str, args: TimelineArgs) -> None:
        """As `TimelineFile`."""
        packet, event = self._event(track, ns, self._instant_type)
        self._name(packet, event, name)
        self._annotate(packet, event, args)
        self._builder.write_packet(packet)

    def close(self) -> None:
        """As `TimelineFile`: nothing is left."""

    def _event(self, track: int, ns: int, kind: int) -> tuple[Any, Any]:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = SEQUENCE
        packet.timestamp = max(0, ns - self._begin_ns)
        packet.sequence_flags = self._needs_state
        event = packet.track_event
        event.type, event.track_uuid = kind, track
        return packet, event

    def _add_counters(self, packet: Any, event: Any, tracks: tuple[int, ...], values: Sequence[int]) -> None:
        """The tracks of the counters become the default of the packets that follow, if there are several such."""
        if tracks != self._counter_tracks:
            self._counter_tracks = tracks
            packet.trace_packet_defaults.track_event_defaults.extra_counter_track_uuids.extend(tracks)
        event.extra_counter_values.extend(values)

    def _name(self, packet: Any, event: Any, name: str) -> None:
        number = _interned(self._names, name, packet, "event_names")
        if number is None:
            event.name = _text(name)
        else:
            event.name_iid = number

    def _annotate(self, packet: Any, event: Any, args: TimelineArgs) -> None:
        for name, value in args.items():
            annotation = event.debug_annotations.add()
            number = _interned(self._arg_names, name, packet, "debug_annotation_names")
            if number is None:
                annotation.name = _text(name)
            else:
                annotation.name_iid = number
            if isinstance(value, str):
                annotation.string_value = _text(value)
            elif isinstance(value, int):
                annotation.int_value = value
            else:
                annotation.double_value = value


def _interned(numbers: dict[str, int], name: str, packet: Any, field: str) -> int | None:
    """The number of an interned name; a new one is defined in that field of the packet. None: there are too many."""
    number = numbers.get(name)
    if number is None and len(numbers) < MOST_INTERNED:
        number = numbers[name] = len(numbers) + 1
        getattr(packet.interned_data, field).add(iid=number, name=_text(name))
    return number


def _text(text: str) -> str:
    """A text that protobuf takes: no lone surrogate, and not endless."""
    cut = text[:LONGEST_TEXT]
    return cut if cut.isascii() else cut.encode("utf-8", "backslashreplace").decode()

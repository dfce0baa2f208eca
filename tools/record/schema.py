# SPDX-License-Identifier: Apache-2.0
"""Field numbers of Perfetto's messages that recordings use, for perfetto.py, which writes them, and reader.py.

They are those of protos/perfetto/trace/ in Perfetto, which never change.
"""

from __future__ import annotations

from enum import IntEnum


class Trace(IntEnum):
    PACKET = 1


class Packet(IntEnum):
    FTRACE_EVENTS = 1
    CLOCK_SNAPSHOT = 6
    TIMESTAMP = 8
    TRUSTED_PACKET_SEQUENCE_ID = 10
    TRACK_EVENT = 11
    SYSTEM_INFO = 45
    TRACK_DESCRIPTOR = 60


class ClockSnapshot(IntEnum):
    CLOCKS = 1
    CLOCK_ID = 1
    CLOCK_TIMESTAMP = 2


class Clock(IntEnum):
    REALTIME = 1
    MONOTONIC = 3
    BOOTTIME = 6


class SystemInfo(IntEnum):
    UTSNAME = 1
    TRACING_SERVICE_VERSION = 4
    NUM_CPUS = 8
    SYSNAME = 1
    VERSION = 2
    RELEASE = 3
    MACHINE = 4


class Bundle(IntEnum):
    CPU = 1
    EVENT = 2


class Ftrace(IntEnum):
    TIMESTAMP = 1
    PID = 2
    SCHED_SWITCH = 4
    SCHED_WAKING = 20


class SchedSwitch(IntEnum):
    PREV_COMM = 1
    PREV_PID = 2
    PREV_PRIO = 3
    PREV_STATE = 4
    NEXT_COMM = 5
    NEXT_PID = 6
    NEXT_PRIO = 7


class SchedWaking(IntEnum):
    COMM = 1
    PID = 2
    PRIO = 3
    SUCCESS = 4
    TARGET_CPU = 5


class TrackDescriptor(IntEnum):
    UUID = 1
    NAME = 2
    THREAD = 4
    COUNTER = 8
    THREAD_PID = 1
    THREAD_TID = 2
    THREAD_NAME = 5


class TrackEvent(IntEnum):
    DEBUG_ANNOTATIONS = 4
    TYPE = 9
    TRACK_UUID = 11
    CATEGORIES = 22
    NAME = 23
    COUNTER_VALUE = 30
    FLOW_IDS = 47
    TERMINATING_FLOW_IDS = 48
    INSTANT = 3
    COUNTER = 4


class Annotation(IntEnum):
    UINT_VALUE = 3
    STRING_VALUE = 6
    POINTER_VALUE = 7
    NAME = 10


class Category:
    """Of our track events: what the reader makes of them."""

    QUEUED = "queued"
    MESSAGE = "message"
    TRANSACTION = "transaction"
    ENCLAVE = "enclave"
    LOST = "lost"
    EJECTED = "ejected"
    WAKES = "wakes"  # for the flow alone: the wakeup itself is an event of ftrace
    QUEUE = "queue"  # a counter: the depths are those of the tasks that were queued


#: SystemInfo.tracing_service_version of a recording.
FORMAT_NAME = "ghostbpf recording "
FORMAT_VERSION = 1

#: What a track's uuid has above its lower 32 bits: by task, by enclave, by the order of the queues, and the machine.
TASK_TRACKS, MESSAGE_TRACKS, QUEUE_TRACKS, MACHINE_TRACK = 1 << 32, 2 << 32, 3 << 32, 4 << 32

/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The table of hints that applications, agents and BPF share: an mmapable array of records of 64 bytes.
 *
 *     record 0        the header
 *     then            the stream, 8 slots to a record
 *     then            the work classes
 *     then            the scheduling items
 *
 * The protocol takes aligned loads and stores alone, so Python can follow it, and a process that dies leaves no lock:
 *
 *   - A record has one writer, its owner. Its seq is odd while the owner writes it; a reader checks seq before and
 *     after. A process that finds a record free, or its owner dead, makes itself the owner and sets seq to the next odd
 *     number. The applications agree on which records each of them uses.
 *
 *   - The owner then announces the update by an entry, seq << 32 | index, which is new each time. It stores the entry
 *     in slot index % slots of the stream, then in the header's last. A reader keeps a copy of the entries that it has
 *     seen. If last is unchanged, nothing has happened; else the reader looks for changed slots.
 *
 *   - Many items share a slot, so an entry may overwrite one that was not read yet. A reader that finds a slot changed
 *     rescans all items of the slot by their seq, so only the number of updates is lost, and no writer waits for a
 *     slot. (In ghOSt's stream, updates claim entries by compare and swap; one update that finds no free entry sends
 *     the reader to all items of the table.)
 *
 *   - A change that concerns all items, such as that of a work class, is announced by a new value of the header's
 *     rescan.
 */
#ifndef GHOSTBPF_HINTS_H
#define GHOSTBPF_HINTS_H

#define HINTS_VERSION 0x67680001
#define HINTS_RECORD_BYTES 64
#define HINTS_SLOTS_PER_RECORD 8
#define HINTS_CLASS_ENTRY 0x80000000 /* set in an entry's index: the entry is of a work class */

#define HINT_RUNNABLE 1 /* the task has work to do */

#define HINT_ONE_SHOT 1 /* the application announces each piece of work and its deadline */
#define HINT_REPEATING 2 /* work comes every period without an announcement */

struct hints_header {
	u32 version; /* HINTS_VERSION */
	u32 slots; /* number of slots; a multiple of 8 */
	u32 classes; /* number of work classes */
	u32 items; /* number of items */
	u64 last; /* the entry of the last update */
	u64 rescan; /* a new value: look at all items */
	u64 members; /* a new value: an item has changed its task */
};

struct hint_item {
	u32 seq;
	u32 owner; /* tgid of the process that writes the record */
	u32 tid; /* 0: not in use */
	u32 work_class;
	u64 flags; /* HINT_RUNNABLE */
	u64 deadline_ns; /* CLOCK_MONOTONIC; 0: none */
	u64 updated_ns; /* CLOCK_MONOTONIC */
};

struct hint_class {
	u32 seq;
	u32 owner;
	u32 flags; /* HINT_ONE_SHOT or HINT_REPEATING; 0: not in use */
	u32 qos; /* quality of service: a larger value is more urgent */
	u64 exectime_ns; /* first estimate of the run time of one piece of work */
	u64 period_ns; /* HINT_REPEATING only */
};

union hint_record {
	struct hints_header header;
	struct hint_class work_class;
	struct hint_item item;
	u64 slots[8];
};

#endif

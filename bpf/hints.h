/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The table of hints that applications, agents and BPF share: an mmapable array of records of 64 bytes.
 *
 *     record 0        the header
 *     then            the stream, 8 slots to a record
 *     then            the work classes
 *     then            the scheduling items
 *
 * Everybody can follow its protocol with aligned loads and stores alone, so that Python can, too, and so that nobody
 * who dies leaves anything locked:
 *
 *   - A record's seq is odd while its owner, the one process that writes it, does so. Who reads checks seq before and
 *     after. A process that finds a record free, or its owner dead, says that it is the owner, and makes seq the next
 *     odd number, whatever it was. Who gets which record is for the applications to agree on.
 *
 *   - Then the owner announces the update. Its entry, seq << 32 | index, has never been there before; it is stored in
 *     slot index % slots of the stream, and then in the header's last. Who reads keeps a copy of what it has seen.
 *     While last is the same, there is nothing to do; else it looks for slots that have changed.
 *
 *   - A slot is many items', so one entry may cover another before it was seen: the slot overflows. No one has to
 *     notice, for whoever finds a slot changed rescans all of its items, by their seq. Nothing is lost but how often
 *     an item was updated, and no one ever waits for a slot. ghOSt's stream, where updates claim entries by compare
 *     and swap, sends its reader to all items of the table as soon as one update finds none free.
 *
 *   - What concerns all items, such as a work class, is announced by another value in the header's rescan.
 */
#ifndef GHOSTBPF_HINTS_H
#define GHOSTBPF_HINTS_H

#define HINTS_VERSION 0x67680001
#define HINTS_RECORD_BYTES 64
#define HINTS_SLOTS_PER_RECORD 8
#define HINTS_CLASS_ENTRY 0x80000000 /* in an entry's index: of a work class */

#define HINT_RUNNABLE 1 /* the task has work to do */

#define HINT_ONE_SHOT 1 /* each time that work comes, the application says so, and by when */
#define HINT_REPEATING 2 /* work comes every period by itself */

struct hints_header {
	u32 version; /* HINTS_VERSION */
	u32 slots; /* how many there are of each; a multiple of 8 */
	u32 classes;
	u32 items;
	u64 last; /* the entry of the last update */
	u64 rescan; /* a new value: look at all items */
	u64 members; /* a new value: another item has another task */
};

struct hint_item {
	u32 seq;
	u32 owner; /* process */
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
	u32 qos; /* more is more urgent */
	u64 exectime_ns; /* of one piece of work, as a first guess */
	u64 period_ns; /* of a repeating one */
};

union hint_record {
	struct hints_header header;
	struct hint_class work_class;
	struct hint_item item;
	u64 slots[8];
};

#endif

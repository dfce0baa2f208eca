/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_RECORD_H
#define GHOSTBPF_RECORD_H

enum record_type {
	RECORD_SWITCH = 1, /* `tid` leaves the CPU, for `other` */
	RECORD_WAKEUP, /* `other` wakes `tid`, which is to run on `target` */
	RECORD_NEW, /* the same for a new task */
	RECORD_AFFINITY, /* before one of the above, if `allowed` does not suffice: 64 more CPUs, from 64 * depth on */
	RECORD_TXN, /* agent `tid` has committed a transaction; `state` is its state, `depth` the message's number */
};

#define RECORD_EXT 1 /* the task is in the ext class */
#define RECORD_WAITS 2 /* the task that leaves the CPU is runnable */

/* What happened; all members are integers, so that Python unpacks records in bulk. */
struct record {
	u64 at; /* CLOCK_BOOTTIME */
	u64 allowed; /* the task's affinity: bit n is CPU n, for the first 64 */
	u64 queue; /* the DSQ on which the task waits; 0: none */
	u64 gtid; /* of a transaction, as the next one */
	u64 slice_ns;
	u64 comm_low;
	u64 comm_high;
	u64 other_comm_low;
	u64 other_comm_high;
	u32 type;
	u32 cpu; /* where it happened */
	s32 tid;
	s32 tgid;
	s32 other;
	s32 other_tgid;
	u32 depth; /* of the queue, with the task */
	u32 enclave;
	u32 state;
	u32 flags; /* RECORD_…, or TXN_… */
	s32 prio;
	s32 other_prio;
	u32 nr_allowed;
	s32 target;
};

#endif

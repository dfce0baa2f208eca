/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Slots: the programs that enclaves' policies put in place of the core's ops, one array per op.
 *
 * Each enclave has two slots in each array; enclave.bank tells which one is live. One store in user space replaces a
 * whole policy between two events, with nothing detached and no gap.
 *
 * With FELL_BACK in enclave.bank the number of the slot is beyond the arrays: each call falls through to the built-in
 * FIFO. See stay_alive.bpf.h.
 *
 * An enclave that runs tasks of cgroups with a limit (LIMITED in enclave.bank) has the core's programs of limited.bpf.h
 * in front of its policy's: they are in the slots from LIMITED_SLOTS on. So limits cost nothing in an enclave without
 * any. Those of select_cpu, enqueue and running throttle tasks. They have a bit of their own (THROTTLING, which is
 * LIMITED in the upper half of enclave.bank), and cost nothing while all limited cgroups have CPU time left.
 *
 * Enclave 0 has no policy. Its slots hold rare parts of the core's own ops (enum dispatch_part). They are programs of
 * their own because the verifier would follow each path through a part and through the rest of its op.
 */
#ifndef GHOSTBPF_SLOTS_BPF_H
#define GHOSTBPF_SLOTS_BPF_H

#include "abi.h"

BPF_PROG_ARRAY(slot_select_cpu, SLOTS);
BPF_PROG_ARRAY(slot_enqueue, SLOTS);
BPF_PROG_ARRAY(slot_dispatch, SLOTS);
BPF_PROG_ARRAY(slot_tick, SLOTS);
BPF_PROG_ARRAY(slot_running, SLOTS);
BPF_PROG_ARRAY(slot_stopping, SLOTS);
BPF_PROG_ARRAY(slot_disable, SLOTS);
BPF_PROG_ARRAY(slot_exit_task, SLOTS);
BPF_PROG_ARRAY(slot_set_cpumask, SLOTS);
BPF_PROG_ARRAY(slot_set_weight, SLOTS);
BPF_PROG_ARRAY(slot_yield, SLOTS);
BPF_PROG_ARRAY(slot_throttle, SLOTS); /* a task was throttled instead of enqueued; the arguments are those of enqueue */

enum dispatch_part { ORPHANED_PART, DRAINING_PART };

static u32 slot_of(u32 id, struct enclave *e)
{
	return id * 2 + (u32)(e->bank & ~(u64)LIMITED);
}

/* The same, or the slot of the program in front of it. */
static u32 front_slot_of(u32 id, struct enclave *e)
{
	return id * 2 + (u32)e->bank;
}

/* The same for select_cpu, enqueue and running. */
static u32 throttling_slot_of(u32 id, struct enclave *e)
{
	return id * 2 + (u32)(e->bank >> 32);
}

#endif

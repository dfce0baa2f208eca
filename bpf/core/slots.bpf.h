/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Slots: the programs that enclaves' policies put in place of the core's ops, one array per op.
 *
 * Each array has two banks of MAX_ENCLAVES; enclave.bank tells which bank is live. One store in user space replaces a
 * whole policy between two events, with nothing detached and no gap.
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

static u32 slot_of(u32 id, struct enclave *e)
{
	return id + (e->bank ? MAX_ENCLAVES : 0);
}

#endif

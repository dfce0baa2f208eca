/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who waits on a CPU's own queue when the policy that put it there is replaced by one that does not look.
 *
 * User space marks the enclave before it replaces the policy; from then on every CPU of the enclave serves all of these
 * queues. When no program of the old policy runs any more, it has what is left there handed over, and takes the mark
 * away. A loader that dies in between leaves the mark: then it takes longer, and nobody is lost.
 */
#ifndef GHOSTBPF_LEFTOVER_BPF_H
#define GHOSTBPF_LEFTOVER_BPF_H

#include "hotplug.bpf.h"

enum draining { LOOK, SERVE, DRAIN };

/* Look whether somebody waits on a CPU's own queue, run one who does here, or have all wait on the enclave's queue. */
static bool each_draining_queue(u32 id, struct enclave *e, u32 what)
{
	bool found = false;

	for_each_number(cpu, 0, scx_bpf_nr_cpu_ids()) {
		if (!has_bit(e->cpus, cpu))
			continue;
		if (what == DRAIN) {
			requeue(cpu, id);
			scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
		} else if (what == SERVE) {
			found = scx_bpf_dsq_move_to_local(VTIME_DSQ(cpu)) || scx_bpf_dsq_move_to_local(CPU_DSQ(cpu));
		} else {
			found = scx_bpf_dsq_nr_queued(VTIME_DSQ(cpu)) > 0 || scx_bpf_dsq_nr_queued(CPU_DSQ(cpu)) > 0;
		}
		if (found)
			return true;
	}
	return false;
}

/* Only args->enclave counts. */
int call_hand_over(struct join_args *args)
{
	u32 id = args->enclave & (MAX_ENCLAVES - 1);
	struct enclave *e = enclave_of(id);

	bpf_rcu_read_lock();
	if (e)
		each_draining_queue(id, e, DRAIN);
	bpf_rcu_read_unlock();
	return 0;
}

#endif

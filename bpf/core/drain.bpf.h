/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Draining: tasks on CPUs' own queues when a policy that uses none replaces the policy that put them there; and the
 * queues of enclaves that are being destroyed.
 *
 * User space sets DRAINING_QUEUES in enclave.draining before it replaces the policy; from then on every CPU of the
 * enclave serves all of the enclave's CPU queues. When no program of the old policy runs any more, user space calls
 * call_drain() and clears the mark. A loader that dies in between leaves the mark: serving takes longer then, but no
 * task is lost. It is the same with DRAINING_RESIZED after a resize; see resize.bpf.h.
 */
#ifndef GHOSTBPF_DRAIN_BPF_H
#define GHOSTBPF_DRAIN_BPF_H

#include "abi.h"
#include "bits.bpf.h"
#include "iterate.bpf.h"
#include "queues.bpf.h"
#include "resize.bpf.h"
#include "stay_alive.bpf.h"
#include "state.bpf.h"

enum drain_step {
	DRAIN_CHECK, /* return true if a task waits on a CPU's own queue */
	DRAIN_SERVE, /* run such a task on this CPU; return true if there was one */
	DRAIN_REQUEUE, /* move all such tasks to the enclave's queue */
};

static bool each_draining_queue(u32 id, struct enclave *e, u32 step)
{
	bool has_task = false;

	for_each_number(cpu, 0, scx_bpf_nr_cpu_ids()) {
		if (!has_bit(e->cpus, cpu))
			continue;
		if (step == DRAIN_REQUEUE) {
			requeue(cpu, id);
			scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
		} else if (step == DRAIN_SERVE) {
			has_task = scx_bpf_dsq_move_to_local(VTIME_DSQ(cpu)) || scx_bpf_dsq_move_to_local(CPU_DSQ(cpu));
		} else {
			has_task = scx_bpf_dsq_nr_queued(VTIME_DSQ(cpu)) > 0 || scx_bpf_dsq_nr_queued(CPU_DSQ(cpu)) > 0;
		}
		if (has_task)
			return true;
	}
	return false;
}

/* Run a task that the enclave's policy may not find; return true if there was one. */
static bool serve_draining(u32 id, struct enclave *e, struct core *c)
{
	if (e->draining & DRAINING_RESIZED)
		move_to_fallback(PENDING_DSQ(id), e, c);
	if (e->draining & DRAINING_LOST)
		recover_tasks(id, e, c);
	return e->draining & DRAINING_QUEUES && each_draining_queue(id, e, DRAIN_SERVE);
}

/*
 * Move the tasks on an enclave's CPU queues to the enclave's queue; uses args->enclave alone. After a resize, move only
 * those that cannot stay.
 */
int call_drain(struct join_args *args)
{
	u32 id = args->enclave & (MAX_ENCLAVES - 1);
	struct enclave *e = enclave_of(id);

	bpf_rcu_read_lock();
	if (e && (e->draining != DRAINING_RESIZED || e->state != ENCLAVE_ACTIVE))
		each_draining_queue(id, e, DRAIN_REQUEUE);
	if (e && e->state != ENCLAVE_ACTIVE)
		move_to_pending_head(THROTTLED_DSQ(id), id);
	if (e && e->draining & DRAINING_RESIZED)
		return_all_tasks(id, true);
	bpf_rcu_read_unlock();
	return 0;
}

/*
 * Have every CPU serve an enclave's queue (args->tid is 1), since the enclave goes away, or no longer (0). The result
 * is the number of tasks that wait there.
 */
int call_set_orphaned(struct join_args *args)
{
	struct core *c = the_core();
	u32 id = args->enclave & (MAX_ENCLAVES - 1);

	if (c)
		assign_bit(&c->orphaned_queues, id, args->tid);
	return scx_bpf_dsq_nr_queued(PENDING_DSQ(id));
}

#endif

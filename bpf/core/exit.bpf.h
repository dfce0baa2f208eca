/* SPDX-License-Identifier: GPL-2.0-only */
/* The end of the core: the record that it leaves when the kernel ends it, and its part of the kernel's debug dump. */
#ifndef GHOSTBPF_EXIT_BPF_H
#define GHOSTBPF_EXIT_BPF_H

#include "abi.h"
#include "bits.bpf.h"
#include "iterate.bpf.h"
#include "state.bpf.h"

BPF_ARRAY(exit_info, struct exit_record, 1);

/*
 * Return true if the kernel has ended this core. The core's tracepoint programs may stay attached for a while (a loader
 * that died had not pinned all of them, or still had them open). They must not touch the next scheduler: looking for an
 * idle CPU before that scheduler is ready would end it.
 */
static bool has_exited(void)
{
	u32 zero = 0;
	struct exit_record *record = exit_info.lookup(&zero);

	return !record || record->kind;
}

BPF_PROG(core_exit, struct scx_exit_info *ei)
{
	u32 zero = 0;
	struct exit_record *record = exit_info.lookup(&zero);

	if (!record)
		return 0;
	bpf_probe_read_kernel_str(record->reason, sizeof(record->reason), ei->reason);
	bpf_probe_read_kernel_str(record->message, sizeof(record->message), ei->msg);
	bpf_probe_read_kernel_str(record->dump, sizeof(record->dump), ei->dump);
	record->code = ei->exit_code;
	record->at_ns = bpf_ktime_get_boot_ns();
	record->regular = ei->kind == SCX_EXIT_UNREG;
	record->kind = ei->kind;
	return 0;
}

/* What schedulers/eject.py needs beside the policy: its CPUs, and what decides in place of the policy or for it. */
static void dump_details(u64 id, struct enclave *e)
{
	char cpus_format[] = "enclave %llu: cpus %llu %llx\n";
	char agent_format[] = "enclave %llu: has an agent\n";
	char fallback_format[] = "enclave %llu: fell back\n";
	u64 args[3] = { id };

#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++) {
		if (!e->cpus[i])
			continue;
		args[1] = i;
		args[2] = e->cpus[i];
		scx_bpf_dump_bstr(cpus_format, args, sizeof(args));
	}
	if (e->bank & LIVE_BANK ? e->agents[1] : e->agents[0])
		scx_bpf_dump_bstr(agent_format, args, sizeof(args[0]));
	if (e->bank & FELL_BACK)
		scx_bpf_dump_bstr(fallback_format, args, sizeof(args[0]));
}

#define DUMPED_CPUS 128 /* more would leave no room for tasks */

/* For each CPU of an enclave, when a task in the ext class could have run there. */
static void dump_availability(void)
{
	char format[] = "cpu %llu: available %llx\n";

	for_each_number(number, 0, DUMPED_CPUS) {
		struct cpu *cpu = cpu_of(number);
		u64 args[2];

		if (!cpu || !cpu->enclave)
			continue;
		args[0] = number;
		args[1] = cpu->availability;
		scx_bpf_dump_bstr(format, args, sizeof(args));
	}
}

BPF_PROG(core_dump, struct scx_dump_ctx *dctx)
{
	char format[] = "enclave %llu: policy %s, %llu queued\n";

	for_each_number(id, 1, MAX_ENCLAVES) {
		struct enclave *e = enclave_of(id);
		u64 args[3];

		if (!e || e->state == ENCLAVE_FREE)
			continue;
		args[0] = id;
		args[1] = (u64)(e->bank & LIVE_BANK ? e->policy[1] : e->policy[0]);
		args[2] = scx_bpf_dsq_nr_queued(PENDING_DSQ(id));
		scx_bpf_dump_bstr(format, args, sizeof(args));
		dump_details(id, e);
	}
	dump_availability();
	return 0;
}

BPF_PROG(core_dump_task, struct scx_dump_ctx *dctx, struct task_struct *p)
{
	char format[] = "enclave %llu\n";
	struct enclave *e = NULL;
	u64 args[1] = { membership(task_ctx_of(p), &e) };

	scx_bpf_dump_bstr(format, args, sizeof(args));
	return 0;
}

#endif

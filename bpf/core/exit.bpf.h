/* SPDX-License-Identifier: GPL-2.0-only */
/* The end of the core: the record that it leaves when the kernel ends it, and its part of the kernel's debug dump. */
#ifndef GHOSTBPF_EXIT_BPF_H
#define GHOSTBPF_EXIT_BPF_H

#include "abi.h"
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
	record->regular = ei->kind == SCX_EXIT_UNREG;
	record->kind = ei->kind;
	return 0;
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
		args[1] = (u64)(e->bank ? e->policy[1] : e->policy[0]);
		args[2] = scx_bpf_dsq_nr_queued(PENDING_DSQ(id));
		scx_bpf_dump_bstr(format, args, sizeof(args));
	}
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

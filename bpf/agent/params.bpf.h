/* SPDX-License-Identifier: GPL-2.0-only */
/* The parameters of the kernel half; user space may change them at any time. */
#ifndef GHOSTBPF_PARAMS_BPF_H
#define GHOSTBPF_PARAMS_BPF_H

#include "abi.h"
#include "agent.h"
#include "sched.bpf.h"

BPF_F_TABLE("array", u32, struct agent_params, params, 1, BPF_F_MMAPABLE);

/* The slice of a task that waits without a decision. */
static u64 slice(void)
{
	u32 zero = 0;
	struct agent_params *param = params.lookup(&zero);

	return param && param->slice_ns ? param->slice_ns : SLICE_ENDLESS;
}

#endif

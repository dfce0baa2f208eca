/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_AGENT_H
#define GHOSTBPF_AGENT_H

struct agent_params {
	u64 slice_ns; /* the slice of a task that the core runs without a decision; 0: until it blocks */
};

#endif

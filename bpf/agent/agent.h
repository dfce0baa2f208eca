/* SPDX-License-Identifier: GPL-2.0-only */
struct agent_params {
	u64 slice_ns; /* of a task that the core puts on a CPU unasked; 0: until it blocks */
};

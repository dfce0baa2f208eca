/* SPDX-License-Identifier: GPL-2.0-only */
struct rr_params {
	u64 slice_ns; /* how long a task runs before it goes to the tail */
};

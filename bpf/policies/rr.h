/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_RR_H
#define GHOSTBPF_RR_H

struct rr_params {
	u64 slice_ns; /* how long a task runs before it goes to the tail of the queue */
};

#endif

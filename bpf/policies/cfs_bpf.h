/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_CFS_BPF_H
#define GHOSTBPF_CFS_BPF_H

struct cfs_bpf_params {
	u64 latency_ns; /* the period in which each task of a CPU runs once */
	u64 min_granularity_ns; /* the shortest slice, whatever the number of tasks */
};

#endif

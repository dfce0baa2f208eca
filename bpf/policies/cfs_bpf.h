/* SPDX-License-Identifier: GPL-2.0-only */
struct cfs_bpf_params {
	u64 latency_ns; /* in which each of a CPU's tasks is to run once */
	u64 min_granularity_ns; /* but none for less than this */
};

/* SPDX-License-Identifier: GPL-2.0-only */
/* Per CPU. */
struct idle_totals {
	u64 latches; /* tasks of enclaves that came on this CPU */
	u64 bpf_latches; /* of these, put there by BPF, with no agent asked */
	u64 idle_to_bpf_latches; /* of these, on a CPU that was idle */
};

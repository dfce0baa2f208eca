/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_SCHEDGHOSTIDLE_H
#define GHOSTBPF_SCHEDGHOSTIDLE_H

/* Per CPU. */
struct idle_totals {
	u64 latches; /* tasks of enclaves that came on this CPU */
	u64 bpf_latches; /* of these, latched by BPF without an agent */
	u64 idle_to_bpf_latches; /* of these, on an idle CPU */
};

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GHOSTBPF_BIFF_H
#define GHOSTBPF_BIFF_H

struct biff_params {
	u64 slice_ns; /* how long a task may run while another waits */
};

#endif

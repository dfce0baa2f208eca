/* SPDX-License-Identifier: GPL-2.0-only */
struct biff_params {
	u64 slice_ns; /* how long a task may keep a CPU that somebody waits for */
};

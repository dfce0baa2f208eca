/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into cyclictest: its measuring threads make themselves SCHED_OTHER, whatever --policy says, and so would leave
 * SCHED_EXT and their enclave. Here a thread that asks to become SCHED_OTHER keeps the policy that it has.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

int sched_setscheduler(pid_t pid, int policy, const struct sched_param *param)
{
	return policy == SCHED_OTHER ? 0 : syscall(SYS_sched_setscheduler, pid, policy, param);
}
